"""Paired tests of one method against the others, over every data set and seed that both have."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from .rows import FAMILIES, Row
from .runs import CompareError

__all__ = ["Paired", "compare_rows", "paired_figures"]


@dataclass(frozen=True)
class Paired:
    """`row` against `other` on `metric`. Difference in points, row minus other; p-values None for too few pairs."""

    row: str
    other: str
    metric: str
    pairs: int
    difference: float
    t_p: float | None
    wilcoxon_p: float | None


def compare_rows(rows: Sequence[Row], name: str, metrics: Sequence[str]) -> list[Paired]:
    """Compare every other measured row with the row called `name`.

    Raises:
        CompareError: there is no such row.
    """
    measured = [row for row in rows if not row.published]
    target = next((row for row in measured if row.label == name), None)
    if target is None:
        raise CompareError(f"no method {name!r} to compare against; there are: {', '.join(r.label for r in measured)}")
    results = []
    for row in measured:
        if row is target:
            continue
        for metric in metrics:
            a, b = paired_figures(row, target, metric)
            if a:
                results.append(_test(row.label, name, metric, a, b))
    return results


def paired_figures(row: Row, other: Row, metric: str) -> tuple[list[float], list[float]]:
    """Accuracies of both rows on the data sets and seeds that both have.

    Zero-shot CLIP does not depend on the seed, so its one figure stands for every seed of the other row.
    """
    a, b = [], []
    for family, dataset, name in sorted(row.cells):
        key = (family, dataset, name)
        if family != FAMILIES[0] or name != metric or key not in other.cells:
            continue
        left, right = row.cells[key].values, other.cells[key].values
        if row.runs[0].is_zero_shot:
            left = dict.fromkeys(right, row.cells[key].mean)
        if other.runs[0].is_zero_shot:
            right = dict.fromkeys(left, other.cells[key].mean)
        for seed in sorted(left.keys() & right.keys()):
            a.append(left[seed])
            b.append(right[seed])
    return a, b


def _test(row: str, other: str, metric: str, a: list[float], b: list[float]) -> Paired:
    from scipy import stats

    differences = [x - y for x, y in zip(a, b, strict=True)]
    t_p = wilcoxon_p = None
    if len(a) > 1 and len(set(differences)) > 1:
        with warnings.catch_warnings():  # scipy warns of small samples; the table prints their number
            warnings.simplefilter("ignore")
            t_p = float(stats.ttest_rel(a, b).pvalue)
            wilcoxon_p = float(stats.wilcoxon(a, b).pvalue)
    return Paired(row, other, metric, len(a), statistics.fmean(differences), t_p, wilcoxon_p)
