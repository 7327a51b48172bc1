"""Where runs lie, and what lies there: the folders of CoOp and its family."""

from __future__ import annotations

import glob
import os
import re

from .settings import Settings

__all__ = ["base2new", "epoch_of", "evaluated", "has_model", "is_done", "trained"]


def base2new(settings: Settings, part: str, dataset: str, trainer: str, tag: str, seed: str) -> str:
    """A run of base-to-new; ``part`` is train_base, test_new or test_base."""
    return f"{settings.output}/base2new/{part}/{dataset}/shots_{settings.shots}/{trainer}/{tag}/seed{seed}"


def trained(settings: Settings, dataset: str, trainer: str, tag: str, seed: str, inside: str = "") -> str:
    """A run on all classes; ``inside`` is a folder more, with its slash, which CoOp's own scripts have."""
    return f"{settings.output}/{dataset}/{trainer}/{tag}_{settings.shots}shots/{inside}seed{seed}"


def evaluated(settings: Settings, dataset: str, trainer: str, tag: str, seed: str, inside: str = "") -> str:
    """A test on ``dataset`` of what was trained on another one."""
    return f"{settings.output}/evaluation/{trainer}/{tag}_{settings.shots}shots/{inside}{dataset}/seed{seed}"


def is_done(folder: str) -> bool:
    """Whether a run ended well; a folder alone may be of one that did not."""
    return os.path.isfile(f"{folder}/results.json")


def has_model(folder: str) -> bool:
    """Whether a run saved a checkpoint."""
    return bool(glob.glob(f"{glob.escape(folder)}/*/model*.pth.tar*"))


def epoch_of(folder: str, yaml: str, epochs: str = "") -> str:
    """The epoch that a run saved last; where nothing is saved yet, the last one of ``epochs`` or its yaml."""
    for pointer in sorted(glob.glob(f"{glob.escape(folder)}/*/checkpoint")):
        with open(pointer, encoding="utf-8") as file:
            name = file.readline().rstrip("\n")
        if name.startswith("model.pth.tar-"):
            return name.rpartition("-")[2]
    if epochs:
        return epochs
    with open(yaml, encoding="utf-8") as file:
        found = re.search(r"^ *MAX_EPOCH: *([0-9]+)", file.read(), re.MULTILINE)
    return found[1] if found else ""
