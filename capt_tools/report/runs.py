"""What a run folder says: its record, labels, confidences and image paths."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ReportError", "RunData", "read_run", "run_names"]


class ReportError(ValueError):
    """No report can be made; the message says why and what to do."""


@dataclass(frozen=True)
class RunData:
    """A tested run.

    Attributes:
        folder: the run folder.
        record: ``results.json``.
        classnames: C names; equal ones carry their label, so that each names one class.
        labels: ``(M,)`` ground truth.
        probs: ``(M, C)`` confidences.
        base_probs: ``(M, C)`` those of the base model; None where the method stands on none.
        paths: M image paths, relative to the data root where possible.
    """

    folder: Path
    record: dict[str, Any]
    classnames: list[str]
    labels: np.ndarray
    probs: np.ndarray
    base_probs: np.ndarray | None
    paths: list[str]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classnames)

    @property
    def is_shown(self) -> bool:
        """Whether the run read its pictures as a viewer shows them; else as they are stored."""
        return bool(self.record.get("pictures") == "shown")

    @property
    def predictions(self) -> np.ndarray:
        """``(M,)`` top classes."""
        predictions: np.ndarray = self.probs.argmax(axis=1)
        return predictions

    @property
    def base_predictions(self) -> np.ndarray | None:
        """``(M,)`` top classes of the base model."""
        return None if self.base_probs is None else self.base_probs.argmax(axis=1)


def read_run(folder: Path) -> RunData:
    """Read a finished run.

    Raises:
        ReportError: the folder holds none, or its two files do not fit together.
    """
    record_path, arrays_path = folder / "results.json", folder / "predictions.npz"
    missing = [path.name for path in (record_path, arrays_path) if not path.is_file()]
    if missing:
        raise ReportError(f"{folder} has no {' and no '.join(missing)}; give the output folder of a finished run")
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        with np.load(arrays_path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        labels, probs, paths = found["labels"], found["probs"], found["impaths"].tolist()
        names, num_test, accuracy = record["classnames"], record["num_test"], record["accuracy"]
    except (KeyError, OSError, ValueError) as error:
        raise ReportError(f"{folder}: its record cannot be read ({type(error).__name__}: {error})") from error
    base_probs = found.get("base_probs")
    if len(labels) != num_test or probs.shape != (num_test, len(names)) or len(paths) != num_test:
        raise ReportError(
            f"{folder}: results.json speaks of {num_test} images of {len(names)} classes, predictions.npz of "
            f"{len(labels)} of {probs.shape[1]}; one of them is of another run"
        )
    counted = 100.0 * float((probs.argmax(axis=1) == labels).mean())
    if abs(counted - accuracy) > 1e-6:
        raise ReportError(
            f"{folder}: results.json says {accuracy:.4f} % right, predictions.npz {counted:.4f} %; "
            "one of them is of another run"
        )
    return RunData(folder, record, distinct(names), labels.astype(np.int64), probs, base_probs, paths)


def distinct(names: list[str]) -> list[str]:
    """Names that each stand for one class: equal ones get their label behind them."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} #{label}" for label, name in enumerate(names)]


def run_names(runs: list[RunData]) -> list[str]:
    """A short name for each run: method, seed and classes, and as much of the path as it takes to tell them apart."""
    names = []
    for run in runs:
        record = run.record
        method = f"{record['trainer']} on {record['base']}" if record.get("base") else record["trainer"]
        part = "" if record.get("subsample", "all") == "all" else f" {record['subsample']} classes"
        names.append(f"{method}, {record['dataset']}{part}, {record['shots']} shots, seed {record['seed']}")
    count = Counter(names)
    return [f"{n} ({run.folder})" if count[n] > 1 else n for n, run in zip(names, runs, strict=True)]
