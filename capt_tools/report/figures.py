"""Counts behind the report: matrices, pairs, classes. Rows are labels, columns predictions, as everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ClassRow", "PairRow", "cells", "class_rows", "pair_rows"]


@dataclass(frozen=True)
class PairRow:
    """Errors between two classes, in both directions, in images.

    Attributes:
        a: the smaller label.
        b: the larger label.
        before: errors of the base model; None where there is none.
        after: errors of the run.
        resolved: errors of the base model that are classified correctly now.
        introduced: images that the base model had right and that are errors inside this pair now.
    """

    a: int
    b: int
    before: int | None
    after: int
    resolved: int | None
    introduced: int | None

    @property
    def net(self) -> int | None:
        """Resolved less introduced."""
        return None if self.resolved is None or self.introduced is None else self.resolved - self.introduced


@dataclass(frozen=True)
class ClassRow:
    """Images of a class that are right."""

    label: int
    num_images: int
    before: int | None
    after: int
    mistaken: int  # images of other classes that are taken for it now


def cells(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> list[tuple[int, int, int]]:
    """The non-empty cells ``(label, prediction, images)`` of the confusion matrix, row by row."""
    flat, count = np.unique(labels * num_classes + predictions, return_counts=True)
    return [(int(f // num_classes), int(f % num_classes), int(n)) for f, n in zip(flat, count, strict=True)]


def _by_pair(chosen: np.ndarray, one: np.ndarray, other: np.ndarray, num_classes: int) -> dict[int, int]:
    """Images of ``chosen`` by unordered pair of classes, keyed by smaller * C + larger."""
    low, high = np.minimum(one, other)[chosen], np.maximum(one, other)[chosen]
    keys, count = np.unique(low * num_classes + high, return_counts=True)
    return dict(zip(keys.tolist(), count.tolist(), strict=True))


def pair_rows(labels: np.ndarray, base: np.ndarray | None, predictions: np.ndarray, num_classes: int) -> list[PairRow]:
    """Every pair of classes with an error before or after, most errors first."""
    wrong = predictions != labels
    after = _by_pair(wrong, labels, predictions, num_classes)
    if base is None:
        before, resolved, introduced = {}, {}, {}
    else:
        was_wrong = base != labels
        before = _by_pair(was_wrong, labels, base, num_classes)
        resolved = _by_pair(was_wrong & ~wrong, labels, base, num_classes)
        introduced = _by_pair(~was_wrong & wrong, labels, predictions, num_classes)
    rows = []
    for key in before.keys() | after.keys():
        others = (None,) * 3 if base is None else (before.get(key, 0), resolved.get(key, 0), introduced.get(key, 0))
        a, b = divmod(key, num_classes)
        rows.append(PairRow(a, b, others[0], after.get(key, 0), others[1], others[2]))
    return sorted(rows, key=lambda r: (-(r.before or 0), -r.after, r.a, r.b))


def class_rows(
    labels: np.ndarray, base: np.ndarray | None, predictions: np.ndarray, num_classes: int
) -> list[ClassRow]:
    """Right and mistaken images of every class, in the order of labels."""

    def count(chosen: np.ndarray, of: np.ndarray) -> np.ndarray:
        return np.bincount(of[chosen], minlength=num_classes)

    right = predictions == labels
    images = np.bincount(labels, minlength=num_classes)
    after, mistaken = count(right, labels), count(~right, predictions)
    before = None if base is None else count(base == labels, labels)
    return [
        ClassRow(c, int(images[c]), None if before is None else int(before[c]), int(after[c]), int(mistaken[c]))
        for c in range(num_classes)
    ]
