"""Resolved, introduced and net confusion of a method against its base model, from the predictions of both.

CAPT's runs hold its base model's predictions. Every other method is measured against the zero-shot CLIP run with the
same backbone on the same images.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .rows import CONFUSION, Figure, Row
from .runs import CompareError, Run

if TYPE_CHECKING:
    from trainers.capt.run.metrics import ConfusionReport

__all__ = ["add_confusion"]

Arrays = dict[str, np.ndarray]
References = dict[tuple[str, str, str, str], Run]  # data set, classes, backbone, split -> its zero-shot run


def add_confusion(rows: Sequence[Row], datasets: Sequence[str], subsamples: Sequence[str]) -> list[str]:
    """Fill the confusion cells of `rows`; return notes on what they were measured against, or why they are missing.

    Base and new classes are pooled: the errors of both halves count in one share.
    """
    references = {
        (run.dataset, run.subsample, run.backbone, run.split): run
        for row in rows
        for run in row.runs
        if run.trainer == "ZeroshotCLIP" and (run.folder / "predictions.npz").is_file()
    }
    notes = []
    for row in rows:
        first = row.runs[0]
        if first.is_zero_shot:
            continue
        found = False
        for dataset in datasets:
            reports = {}
            for seed in row.seeds:
                report = _report([row.pick(dataset, part).get(seed) for part in subsamples], references)
                if report is not None and report.resolved is not None:
                    reports[seed] = report
            for metric in CONFUSION if reports else ():
                values = {seed: getattr(report, metric) for seed, report in reports.items()}
                row.cells["confusion", dataset, metric] = Figure(statistics.fmean(values.values()), values)
                found = True
        if found:
            notes.append(f"confusion of {row.label}: against {first.base or 'ZeroshotCLIP'}")
    return notes


def _report(runs: Sequence[Run | None], references: References) -> ConfusionReport | None:
    """The report over the pooled halves `runs`; None where a half, its predictions or its base model is missing."""
    from trainers.capt.run.metrics import confusion_report  # brings torch along, so only where it is needed

    labels, base, new, offset = [], [], [], 0
    for run in runs:
        arrays = _predictions(run) if run else None
        if run is None or arrays is None:
            return None
        before = _base_predictions(run, arrays, references)
        if before is None:
            return None
        # classes of the second half are numbered behind those of the first
        labels.append(arrays["labels"] + offset)
        base.append(before + offset)
        new.append(arrays["predictions"] + offset)
        offset += 1 + max(int(values.max()) for values in (arrays["labels"], before, arrays["predictions"]))
    return confusion_report(np.concatenate(labels), np.concatenate(base), np.concatenate(new), offset)


def _base_predictions(run: Run, arrays: Arrays, references: References) -> np.ndarray | None:
    if run.base:
        return arrays.get("base_predictions")
    reference = references.get((run.dataset, run.subsample, run.backbone, run.split))
    if reference is None:
        return None
    other = _predictions(reference)
    if other is None:
        return None
    place = {path: i for i, path in enumerate(other["impaths"])}
    missing = [path for path in arrays["impaths"] if path not in place]
    if missing or len(place) != len(arrays["impaths"]):
        example = missing[0] if missing else "fewer images"
        raise CompareError(f"{run.folder} and {reference.folder} were tested on different images ({example})")
    return other["predictions"][[place[path] for path in arrays["impaths"]]]


@lru_cache(maxsize=64)
def _load(path: Path) -> Arrays:
    """Labels, predictions and image paths of one run; the probabilities are read only where nothing else is there."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files if not key.endswith("probs")}
        for predictions, probs in (("predictions", "probs"), ("base_predictions", "base_probs")):
            if predictions not in arrays and probs in archive.files:
                arrays[predictions] = archive[probs].argmax(axis=1)
    return arrays


def _predictions(run: Run) -> Arrays | None:
    path = run.folder / "predictions.npz"
    return _load(path) if path.is_file() else None
