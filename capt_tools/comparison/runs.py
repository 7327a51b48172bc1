"""Finds run folders and reads what each says: ``results.json``, or the log where another repository wrote the run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from parse_test_res import TEST_STARTS, TRAINING_ENDS, read_log

__all__ = ["CompareError", "Run", "find_runs"]


class CompareError(ValueError):
    """The runs cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """One tested model on one set of classes. Accuracies in percent; None where the run does not say."""

    folder: Path
    trainer: str
    base: str | None
    tag: str  # the folder name that stands for the configuration
    dataset: str
    subsample: str  # base, new or all
    split: str
    shots: int  # 0: none, -1: all training images
    seed: int
    backbone: str
    input_size: tuple[int, ...]
    prec: str | None
    selection: str
    epoch: int | None
    num_test: int | None
    accuracy: float
    per_class: float | None
    commit: str | None
    transductive: bool
    cross: bool  # trained on another data set

    @property
    def label(self) -> str:
        """The method's name in the tables."""
        return f"{self.trainer} on {self.base}" if self.base else self.trainer

    @property
    def is_zero_shot(self) -> bool:
        return self.trainer.startswith("ZeroshotCLIP")


def find_runs(roots: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """All finished runs below `roots`, and the folders of those without a result.

    Raises:
        CompareError: a root is no folder, or holds no run at all.
    """
    runs, unfinished = [], []
    for root in roots:
        if not root.is_dir():
            raise CompareError(f"{root} is not a folder")
        for folder in sorted(_run_folders(root)):
            record = folder / "results.json"
            run = _from_record(record) if record.is_file() else _from_log(folder)
            if run is None:
                unfinished.append(folder)
            else:
                runs.append(run)
    if not runs:
        places = " ".join(map(str, roots))
        raise CompareError(f"no finished run below {places}: neither a results.json nor a log.txt with a result")
    return runs, unfinished


def _run_folders(root: Path) -> set[Path]:
    return {path.parent for pattern in ("results.json", "log.txt") for path in root.rglob(pattern)}


def _from_record(path: Path) -> Run:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CompareError(f"{path} is no valid JSON ({error}); delete the run and repeat it") from error
    missing = [key for key in ("trainer", "dataset", "seed", "accuracy") if key not in record]
    if missing:
        raise CompareError(f"{path} has no {', '.join(missing)}; was it written by another program?")
    trainer, folder = record["trainer"], path.parent
    return Run(
        folder=folder,
        trainer=trainer,
        base=record.get("base"),
        tag=_tag(folder, trainer),
        dataset=record["dataset"],
        subsample=record.get("subsample", "all"),
        split=record.get("split", "test"),
        shots=_shots(trainer, record.get("shots", -1)),
        seed=record["seed"],
        backbone=record.get("backbone", ""),
        input_size=tuple(record.get("input_size", ())),
        prec=record.get("prec"),
        selection=record.get("selection", "last_step"),
        epoch=_epoch(trainer, record.get("epoch")),
        num_test=record.get("num_test"),
        accuracy=record["accuracy"],
        per_class=record.get("mean_per_class_accuracy"),
        commit=record.get("commit"),
        transductive=record.get("transductive", False),
        cross="evaluation" in folder.parts,
    )


def _from_log(folder: Path) -> Run | None:
    """The run that ``log.txt`` in `folder` tells of; None where it is unfinished."""
    path = folder / "log.txt"
    text = path.read_text(encoding="utf-8", errors="replace")
    arguments, config = _arguments(text), _config(text)
    if not config:
        return None
    log = read_log(path, "accuracy", TEST_STARTS if arguments.get("eval_only") == "True" else TRAINING_ENDS)
    if log.value is None:
        return None
    total = re.findall(r"^\* total: ([\d,]+)$", text, flags=re.MULTILINE)
    trainer = config["TRAINER"]["NAME"]
    epoch = arguments.get("load_epoch", "None")
    return Run(
        folder=folder,
        trainer=trainer,
        base=config["TRAINER"]["CAPT"]["BASE"]["NAME"] if trainer == "CAPT" else None,
        tag=_tag(folder, trainer),
        dataset=config["DATASET"]["NAME"],
        subsample=config["DATASET"].get("SUBSAMPLE_CLASSES", "all"),
        split=config["TEST"].get("SPLIT", "test"),
        shots=_shots(trainer, config["DATASET"].get("NUM_SHOTS", -1)),
        seed=config["SEED"],
        backbone=config["MODEL"]["BACKBONE"]["NAME"],
        input_size=tuple(int(n) for n in re.findall(r"\d+", str(config["INPUT"]["SIZE"]))),
        prec=config["TRAINER"].get(trainer.upper(), {}).get("PREC"),
        selection=config["TEST"].get("FINAL_MODEL", "last_step"),
        epoch=_epoch(trainer, config["OPTIM"]["MAX_EPOCH"] if epoch == "None" else int(epoch)),
        num_test=int(total[-1].replace(",", "")) if total else None,
        accuracy=log.value,
        per_class=None,
        commit=None,
        transductive=trainer in ("PromptKD", "StackSPLE_PromptKD"),
        cross="evaluation" in folder.parts,
    )


def _arguments(text: str) -> dict[str, str]:
    block = text.partition("** Arguments **")[2].partition("** Config **")[0]
    return dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)


def _config(text: str) -> dict[str, Any]:
    """The configuration that CoOp's train.py prints; it ends at the first line that is none of yacs' lines."""
    lines = text.partition("** Config **\n************\n")[2].splitlines()
    block = "\n".join(_yacs_lines(lines))
    try:
        config = yaml.safe_load(block) or {}
    except yaml.YAMLError:
        return {}
    return config if {"DATASET", "TRAINER", "MODEL", "INPUT", "OPTIM", "TEST", "SEED"} <= config.keys() else {}


def _yacs_lines(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if not re.match(r"[A-Z][A-Z_0-9]*:|\s+\S", line):
            return
        yield line


def _tag(folder: Path, trainer: str) -> str:
    """The folders between the trainer's and the seed's: CoOp's layout names the configuration there."""
    parts = list(folder.parts)
    if trainer not in parts:
        return ""
    tail = parts[len(parts) - parts[::-1].index(trainer) :]
    tail = [part for part in tail if not re.fullmatch(r"seed_?-?\d+", part)]
    if "evaluation" in parts or trainer.startswith("ZeroshotCLIP") and "base2new" not in parts:
        tail = tail[:-1]  # the data set
    return "/".join(tail)


def _shots(trainer: str, shots: int) -> int:
    return 0 if trainer.startswith("ZeroshotCLIP") else shots if shots > 0 else -1


def _epoch(trainer: str, epoch: int | None) -> int | None:
    return None if trainer.startswith("ZeroshotCLIP") else epoch
