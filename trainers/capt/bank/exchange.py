"""The bank in other people's forms: from labels and predictions of any model, and to rows of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["COLUMNS", "checked_predictions", "rows_of"]

COLUMNS = ("image", "view", "label", "pseudo_label", "rival", "is_error", "p_label", "p_pseudo_label", "intensity")
NOT_ONE = 1e-3  # how far from 1 confidences may sum


def checked_predictions(
    labels: ArrayLike, pred_probs: ArrayLike, class_names: Sequence[str], paths: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Labels ``(M,)`` int64 and confidences ``(M, C)`` fp32 of M images, as tensors.

    Args:
        labels: ``(M,)`` places in ``class_names``, or names of it.
        pred_probs: ``(M, C)`` a model's confidences.
        class_names: C names.
        paths: M image paths.

    Raises:
        ValueError: says which of them does not fit, and where.
    """
    names, probs = list(class_names), np.asarray(pred_probs, dtype=np.float64)
    if probs.ndim != 2 or probs.shape[1] != len(names) or not names:
        raise ValueError(f"pred_probs must be (M, {len(names)}) for {len(names)} class_names, got {probs.shape}")
    if len(probs) != len(paths) or not len(probs):
        raise ValueError(f"pred_probs must have a row for each of paths, at least one; got {len(probs)}, {len(paths)}")
    wrong = np.flatnonzero(~((probs >= 0).all(axis=1) & (np.abs(probs.sum(axis=1) - 1) < NOT_ONE)))
    if len(wrong):
        raise ValueError(
            f"rows of pred_probs must be confidences that sum to 1, row {wrong[0]} is not; take the softmax"
        )
    label = np.asarray(labels)
    if label.shape != (len(probs),):
        raise ValueError(f"labels must be ({len(probs)},), one for each of paths, got {label.shape}")
    return torch.from_numpy(_places(label, names)), torch.from_numpy(probs).float()


def _places(label: np.ndarray[Any, Any], names: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``(M,)`` labels as places in ``names``."""
    if label.dtype.kind in "UO":  # text
        unknown = sorted({str(name) for name in label} - set(names))
        if unknown:
            raise ValueError(f"labels must be of class_names, which has no {unknown[0]!r}")
        return np.array([names.index(name) for name in label], dtype=np.int64)
    if label.dtype.kind not in "iu" or label.min() < 0 or label.max() >= len(names):
        found = f"{label.min()} to {label.max()} ({label.dtype})"
        raise ValueError(f"labels must be names, or whole numbers from 0 to {len(names) - 1}, got {found}")
    return label.astype(np.int64)


def rows_of(
    entries: Mapping[str, Tensor], class_names: Sequence[str], paths: Sequence[str]
) -> list[dict[str, str | int | float | bool]]:
    """A row of plain values for each of M entries ``(M,)``, the most torn first; keys are :data:`COLUMNS`.

    Args:
        entries: ``label``, ``pseudo_label``, ``rival``, ``p_label``, ``p_pseudo``, ``intensity``, ``index``, ``view``.
        class_names: C names of the classes that they count.
        paths: image path of each ``index``.
    """
    order = entries["intensity"].argsort(descending=True, stable=True)
    columns = {name: value[order].tolist() for name, value in entries.items() if value.dim() == 1}
    rows = []
    for place in range(len(order)):
        entry = {name: column[place] for name, column in columns.items()}
        label, pseudo_label = entry["label"], entry["pseudo_label"]
        values = paths[entry["index"]], entry["view"], class_names[label], class_names[pseudo_label]
        confidences = entry["p_label"], entry["p_pseudo"], entry["intensity"]
        row = (*values, class_names[entry["rival"]], label != pseudo_label, *confidences)
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows
