"""The variables that change a run, read from the environment once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .steps import StopError

__all__ = ["Settings", "helps"]


def _variable(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Settings:
    """The variables of scripts/_run.sh, in lower case; an empty one is one that is not given."""

    data: str = _variable("data", "folder that holds the data set folders")
    backbone: str = _variable("", "CLIP model name, or path of a checkpoint (as the yaml says)")
    size: str = _variable("", 'input size of that model, e.g. "(48, 48)" (as the yaml says)')
    shots: str = _variable("16", "training images per class")
    seeds: tuple[str, ...] = _variable(("1", "2", "3"), "seeds of the protocols that loop over them")
    cfg: str = _variable("", "yaml in configs/trainers/<Trainer>/, no suffix (the paper's)")
    epochs: str = _variable("", "overrides OPTIM.MAX_EPOCH (as the yaml says)")
    loadep: str = _variable("", 'epoch of the checkpoint to test, or "best" (the last one that was saved)')
    source: str = _variable("imagenet", "data set of the cross-data-set training")
    base: str = _variable("ZeroshotCLIP", "base learner under CAPT: ZeroshotCLIP, CoOp ...")
    base_cfg: str = _variable(
        "", "yaml of the base learner (CFG where the base has one of that name, else the paper's)"
    )
    base_dir: str = _variable("", "run folder of the base learner, where these plans did not make it (theirs)")
    teacher: str = _variable("", "CLIP of PromptKD's teacher (as the yaml says)")
    teacher_dir: str = _variable(
        "", "the teacher's PromptSRC run, or checkpoint (teacher_model/<name of the data set>)"
    )
    output: str = _variable("output", "where run folders go")
    opts: tuple[str, ...] = _variable((), "more KEY VALUE pairs for train.py")
    variant: str = _variable("", "word behind the configuration's folder name, to tell runs with other OPTS apart")
    sub: str = _variable("new", "classes that base2new_test tests: new or base")
    ctp: str = _variable("end", "class token position of coop_eval's model")
    nctx: str = _variable("16", "number of context tokens of coop_eval's model")
    csc: str = _variable("False", "class-specific context of coop_eval's model")
    nproc: str = _variable("", "processes that do one run together, one on each GPU (1)")
    python: str = _variable("python", "python that runs train.py")
    is_dry: bool = False
    house: str = "."  # holds train.py and configs/; "." where that is the current folder, so that paths stay short

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ, house: str = ".", python: str = "python") -> Settings:
        """The settings of an environment; ``house`` and ``python`` are for where it names no other python."""
        found: dict[str, Any] = {"python": python}
        for name in helps():
            if text := environ.get(name.upper()):
                found[name] = tuple(text.split()) if name in ("seeds", "opts") else text
        return cls(**found, is_dry=(environ.get("DRY_RUN") or "0") != "0", house=house)

    @property
    def processes(self) -> int:
        """How many do one run together.

        Raises:
            StopError: that is no number of processes.
        """
        if not (self.nproc or "1").isdecimal() or int(self.nproc or "1") < 1:
            raise StopError(f"NPROC must be a whole number from 1 on, got {self.nproc}")
        return int(self.nproc or "1")

    def path(self, name: str) -> str:
        """A file of the repository, as the current folder sees it."""
        return name if self.house == "." else str(Path(self.house, name))

    def has(self, name: str) -> bool:
        """Whether the repository has this file."""
        return Path(self.house, name).is_file()


def helps() -> dict[str, str]:
    """Name -> meaning of every setting that is a variable."""
    return {item.name: item.metadata["help"] for item in fields(Settings) if "help" in item.metadata}
