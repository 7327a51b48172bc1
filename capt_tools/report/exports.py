"""The report's figures as files: CSV for tables, and the arrays that cleanlab and FiftyOne read."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from capt.run.files import write_atomically

from .figures import class_rows, pair_rows
from .runs import RunData

__all__ = ["write_exports"]


def write_exports(run: RunData, folder: Path) -> list[Path]:
    """Write pairs, classes and images as CSV, and labels, confidences and paths in order of the test images.

    ``labels.npy`` ``(M,)`` int64, ``pred_probs.npy`` ``(M, C)`` float32 with rows that sum to 1, ``paths.txt`` and
    ``classes.txt``, one a line: ``cleanlab.filter.find_label_issues(labels, pred_probs)`` takes them as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, c, base = run.classnames, run.num_classes, run.base_predictions
    pairs = [
        [names[r.a], names[r.b], r.before, r.after, r.resolved, r.introduced, r.net]
        for r in pair_rows(run.labels, base, run.predictions, c)
    ]
    classes = [
        [names[r.label], r.num_images, r.before, r.after, r.mistaken]
        for r in class_rows(run.labels, base, run.predictions, c)
    ]
    before = [None] * len(run.labels) if base is None else [names[p] for p in base]
    images = [
        [path, names[y], b, names[p], round(float(row[p]), 6)]
        for path, y, b, p, row in zip(run.paths, run.labels, before, run.predictions, run.probs, strict=True)
    ]
    probs = run.probs.astype(np.float32)
    written = {
        "pairs.csv": _csv(["a", "b", "errors_before", "errors_after", "resolved", "introduced", "net"], pairs),
        "classes.csv": _csv(["class", "images", "right_before", "right_after", "others_taken_for_it"], classes),
        "images.csv": _csv(["image", "label", "before", "after", "confidence"], images),
        "labels.npy": _npy(run.labels),
        "pred_probs.npy": _npy(probs / probs.sum(axis=1, keepdims=True)),
        "paths.txt": "".join(f"{path}\n" for path in run.paths).encode(),
        "classes.txt": "".join(f"{name}\n" for name in names).encode(),
    }
    for name, content in written.items():
        write_atomically(folder / name, partial(_write_bytes, content))
    return [folder / name for name in written]


def _write_bytes(content: bytes, path: str) -> None:
    Path(path).write_bytes(content)


def _csv(head: list[str], rows: list[list[Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return buffer.getvalue().encode()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
