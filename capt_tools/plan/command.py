"""From a method and the settings to the arguments of train.py, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from . import folders
from .methods import Method
from .settings import Settings
from .steps import Job, StopError

__all__ = ["Chosen", "choose", "epochs", "flags", "job", "model_flags", "need_model"]


@dataclass(frozen=True)
class Chosen:
    """The configuration of one run.

    Attributes:
        trainer: name of the trainer.
        cfg: name of the yaml.
        yaml: its path.
        tag: the folder name that stands for the configuration.
    """

    trainer: str
    cfg: str
    yaml: str
    tag: str


def choose(settings: Settings, method: Method, protocol: str, dataset: str) -> Chosen:
    """The configuration that the settings name, else the method's own.

    Raises:
        StopError: there is no such yaml.
    """
    cfg = settings.cfg or method.default_cfg(protocol, dataset)
    yaml = method.yaml(cfg)
    if not settings.has(yaml):
        raise StopError(f"no such configuration: {yaml}")
    on_base = f"_on_{settings.base}" if method.trainer == "CAPT" else ""
    variant = f"_{settings.variant}" if settings.variant else ""
    return Chosen(method.trainer, cfg, settings.path(yaml), cfg + on_base + variant)


def flags(settings: Settings, chosen: Chosen, dataset: str, seed: str, folder: str) -> list[str]:
    """The part that all protocols share.

    Raises:
        StopError: there is no such data set.
    """
    yaml = f"configs/datasets/{dataset}.yaml"
    if not settings.has(yaml):
        raise StopError(f"no such data set: {yaml}")
    words = ["--seed", seed] if seed else []
    words += ["--trainer", chosen.trainer, "--dataset-config-file", settings.path(yaml)]
    words += ["--config-file", chosen.yaml, "--output-dir", folder]
    return words + (["--backbone", settings.backbone] if settings.backbone else [])


def need_model(settings: Settings, folder: str, how: str) -> None:
    """Stop unless ``folder`` holds a checkpoint or nothing is to be run; ``how`` is the command that trains it."""
    if not settings.is_dry and not folders.has_model(folder):
        raise StopError(f"no trained model in {folder}; train it first: {how}")


def model_flags(settings: Settings, chosen: Chosen, folder: str) -> list[str]:
    """The flags that load the checkpoint of a run."""
    epoch = settings.loadep or folders.epoch_of(folder, chosen.yaml, settings.epochs)
    return ["--model-dir", folder] + ([] if epoch == "best" else ["--load-epoch", epoch])


def epochs(settings: Settings) -> list[str]:
    """How long to train, where the yaml does not say it."""
    return ["OPTIM.MAX_EPOCH", settings.epochs] if settings.epochs else []


def job(settings: Settings, folder: str, words: list[str], needs: tuple[str, ...] = ()) -> Job:
    """A run, with the options that every run takes."""
    size = ["INPUT.SIZE", settings.size] if settings.size else []
    processes = ["--nproc", str(settings.processes)] if settings.processes > 1 else []
    return Job(folder, ["--root", settings.data, *processes, *words, *size, *settings.opts], needs)
