"""CAPT's base learner: where its run lies, and the run itself where it is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

from . import folders
from .command import Chosen
from .methods import Method, method_of
from .settings import Settings
from .steps import Job, Plan, StopError

__all__ = ["Base", "train_base"]

# Options for CAPT's command line, and the folders that they name.
Base = tuple[list[str], tuple[str, ...]]


def train_base(
    settings: Settings, chosen: Chosen, protocol: str, dataset: str, seed: str, plan: Callable[..., Plan]
) -> Generator[Job | str, None, Base]:
    """Train CAPT's base learner where that is still to be done, then say how CAPT finds it.

    Args:
        settings: CAPT's.
        chosen: CAPT's configuration; any other trainer's has no base.
        protocol: base2new, xd or few_shot.
        dataset: what the base learns.
        seed: of both.
        plan: makes the base's plan (``protocols.plan``).

    Yields:
        The base's steps.

    Returns:
        Options and folders.
    """
    if chosen.trainer != "CAPT":
        return [], ()
    options = ["TRAINER.CAPT.BASE.NAME", settings.base, *_teacher(settings)]
    if settings.base == "ZeroshotCLIP":
        return options, ()
    if settings.base_dir:
        return [*options, "TRAINER.CAPT.BASE.DIR", settings.base_dir], (settings.base_dir,)

    base = method_of(settings.base)
    of_base = _settings(settings, base, chosen.cfg, protocol, dataset, seed)
    if protocol == "base2new":
        folder = folders.base2new(of_base, "train_base", dataset, base.trainer, of_base.cfg, seed)
    else:
        folder = folders.trained(of_base, dataset, base.trainer, of_base.cfg, seed)
    if not folders.is_done(folder):
        yield f"CAPT needs its base learner first: {base.trainer} in {folder}"
        if protocol == "few_shot":
            yield from plan(of_base, base, "few_shot", dataset, of_base.shots)
        else:
            yield from plan(of_base, base, f"{protocol}_train", dataset, seed)
    epoch = folders.epoch_of(folder, settings.path(base.yaml(of_base.cfg)))
    return [*options, "TRAINER.CAPT.BASE.DIR", folder, "TRAINER.CAPT.BASE.EPOCH", epoch], (folder,)


def _teacher(settings: Settings) -> list[str]:
    if settings.base != "PromptKD":
        return []
    name = ["TRAINER.CAPT.BASE.TEACHER_NAME", settings.teacher] if settings.teacher else []
    return name + (["TRAINER.CAPT.BASE.TEACHER_DIR", settings.teacher_dir] if settings.teacher_dir else [])


def _settings(settings: Settings, base: Method, cfg: str, protocol: str, dataset: str, seed: str) -> Settings:
    """What the base is trained with: as CAPT, less what was meant for CAPT alone."""
    if base.trainer == "CAPT":
        raise StopError("BASE must be a base learner of CAPT, got CAPT itself")
    own = settings.base_cfg or (cfg if settings.has(base.yaml(cfg)) else base.default_cfg(protocol, dataset))
    shots = "0" if base.trainer == "PromptKD" else settings.shots  # it learns from all images
    return replace(settings, cfg=own, shots=shots, seeds=(seed,), epochs="", loadep="", opts=(), variant="")
