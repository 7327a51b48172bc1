"""How much of the base model's confusion a method resolves, and how much it brings in itself.

Row = label, column = prediction, as everywhere in this package:

>>> import numpy as np
>>> labels = np.array([0, 0, 0, 1, 1, 2])
>>> base = np.array([0, 1, 1, 0, 1, 2])
>>> method = np.array([1, 0, 1, 1, 1, 2])
>>> confusion_matrix(labels, base, 3)
array([[1, 2, 0],
       [1, 1, 0],
       [0, 0, 1]])
>>> confusion_report(labels, base, method, 3, min_errors=3)
ConfusionReport(min_errors=3, num_pairs=1, base_errors=3, resolved=66.67, introduced=33.33, net=33.33)

The pair {0, 1} holds three errors of the base model; two of those images are right now, and one image that was right
has become an error inside the pair.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["ConfusionReport", "accuracies", "confusable_pairs", "confusion_matrix", "confusion_report"]


@dataclass(frozen=True)
class ConfusionReport:
    """Resolved, introduced and net share of the base model's errors inside confusable pairs, percent.

    Attributes:
        min_errors: a pair of classes is confusable from this many errors on (both directions together).
        num_pairs: confusable pairs found.
        base_errors: the base model's errors inside them.
        resolved: share of these errors that the method classifies correctly; None where there is no error.
        introduced: images right before that are now errors inside these pairs, relative to ``base_errors``.
        net: resolved - introduced.
    """

    min_errors: int
    num_pairs: int
    base_errors: int
    resolved: float | None
    introduced: float | None
    net: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields as a plain dict."""
        return asdict(self)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts ``(C, C)`` int64, rows label, columns prediction."""
    flat = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def confusable_pairs(matrix: np.ndarray, min_errors: int) -> np.ndarray:
    """Symmetric boolean ``(C, C)``: whether a and b are mistaken for each other at least ``min_errors`` times."""
    errors = matrix - np.diag(np.diag(matrix))
    return (errors + errors.T >= min_errors) & ~np.eye(len(matrix), dtype=bool)


def confusion_report(
    labels: np.ndarray,
    base_predictions: np.ndarray,
    predictions: np.ndarray,
    num_classes: int,
    min_errors: int = 3,
) -> ConfusionReport:
    """Compare a method with its base model on the same images, inside the base model's confusable pairs.

    Args:
        labels: ``(M,)`` ground truth.
        base_predictions: ``(M,)`` top classes of the base model.
        predictions: ``(M,)`` top classes of the method.
        num_classes: C.
        min_errors: errors from which on a pair counts as confusable, at least 1.

    Raises:
        ValueError: the three arrays differ in length, or min_errors is below 1.
    """
    labels, base, new = (np.asarray(a, dtype=np.int64) for a in (labels, base_predictions, predictions))
    if not labels.shape == base.shape == new.shape:
        raise ValueError(f"labels and predictions differ in length: {labels.shape}, {base.shape}, {new.shape}")
    if min_errors < 1:
        raise ValueError(f"min_errors must be at least 1, got {min_errors}")
    pairs = confusable_pairs(confusion_matrix(labels, base, num_classes), min_errors)
    was_error = pairs[labels, base]
    is_new_error = (base == labels) & pairs[labels, new]
    num_errors = int(was_error.sum())
    num_pairs = int(np.triu(pairs).sum())
    if num_errors == 0:
        return ConfusionReport(min_errors, num_pairs, 0, None, None, None)
    resolved = 100.0 * float((was_error & (new == labels)).sum()) / num_errors
    introduced = 100.0 * float(is_new_error.sum()) / num_errors
    rounded = (round(v, 2) for v in (resolved, introduced, resolved - introduced))
    return ConfusionReport(min_errors, num_pairs, num_errors, *rounded)


def accuracies(labels: np.ndarray, predictions: np.ndarray) -> tuple[float, float]:
    """Plain accuracy and mean per-class accuracy over the classes that have images, percent."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    correct = (labels == predictions).astype(np.float64)
    totals = np.bincount(labels)
    per_class = np.bincount(labels, weights=correct)[totals > 0] / totals[totals > 0]
    return 100.0 * float(correct.mean()), 100.0 * float(per_class.mean())
