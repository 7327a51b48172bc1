"""Makes rows of runs: one method under one protocol, with mean and spread over seeds per data set, and averages.

The harmonic mean of a data set is that of its mean base and mean new accuracy, and the one of the average row that of
the averages, as in the papers; its spread is taken over the harmonic means of the seeds.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .runs import CompareError, Run

__all__ = ["AVERAGE", "BASE_TO_NEW", "CONFUSION", "FAMILIES", "Figure", "Row", "average", "harmonic", "make_rows"]

AVERAGE = "Average"
BASE_TO_NEW = ("base", "new", "HM")
CONFUSION = ("resolved", "introduced", "net")
FAMILIES = ("accuracy", "mean per-class accuracy", "confusion")
LARGE_SPREAD = 3.0  # points; such a figure is marked

Column = tuple[str, str, str]  # family, data set, metric
Key = tuple[Hashable, ...]  # what tells protocols apart


@dataclass(frozen=True)
class Figure:
    """A mean with its seeds. `below` names the seeds that lie below zero-shot CLIP."""

    mean: float
    values: Mapping[int, float] = field(default_factory=dict)
    below: tuple[int, ...] = ()

    @property
    def std(self) -> float | None:
        """Population deviation over seeds, None for fewer than two."""
        return statistics.pstdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def marks(self) -> str:
        return ("!" if self.below else "") + ("~" if (self.std or 0.0) > LARGE_SPREAD else "")


@dataclass
class Row:
    """One line of a table."""

    label: str
    protocol: str
    runs: list[Run]
    cells: dict[Column, Figure] = field(default_factory=dict)
    published: bool = False

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    def pick(self, dataset: str, subsample: str) -> dict[int, Run]:
        """The runs of one data set and class subset by seed."""
        return {run.seed: run for run in self.runs if (run.dataset, run.subsample) == (dataset, subsample)}


def harmonic(a: float, b: float) -> float:
    """Harmonic mean of two accuracies.

    >>> round(harmonic(82.69, 63.22), 2)
    71.66
    """
    return 2 * a * b / (a + b) if a + b else 0.0


def make_rows(runs: Sequence[Run], subsamples: Sequence[str]) -> list[Row]:
    """Rows over the runs whose classes are among `subsamples`; runs of different protocols never share a row.

    Args:
        runs: of any method.
        subsamples: ``("base", "new")`` or ``("all",)``.

    Raises:
        CompareError: two runs with different results claim the same place.
    """
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        if run.subsample in subsamples:
            groups[_protocol_key(run)].append(run)
    rows = [row for group in groups.values() for row in _split_variants(group)]
    _name_apart(rows)
    zero_shot = {(r.dataset, r.subsample, r.backbone, r.split): r for r in runs if r.trainer == "ZeroshotCLIP"}
    for row in rows:
        _fill(row, subsamples, zero_shot)
    return sorted(rows, key=lambda row: (not row.runs[0].is_zero_shot, row.runs[0].base is not None, row.label))


def average(rows: Iterable[Row], datasets: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """Add the average over `datasets` to each row that has them all; return a note for each that has not."""
    notes = []
    for row in rows:
        for family in FAMILIES:
            names = CONFUSION if family == "confusion" else [metric for metric in metrics if metric != "HM"]
            for metric in names:
                found = [row.cells.get((family, dataset, metric)) for dataset in datasets]
                figures = [figure for figure in found if figure is not None]
                if len(figures) == len(found):
                    row.cells[family, AVERAGE, metric] = Figure(statistics.fmean(f.mean for f in figures))
            if "HM" in metrics:
                _add_harmonic(row, family, AVERAGE)
        lacking = [d for d in datasets if not any((FAMILIES[0], d, metric) in row.cells for metric in metrics)]
        if lacking:
            notes.append(f"{row.label} has no average: it lacks {', '.join(lacking)}")
    return notes


def _protocol_key(run: Run) -> Key:
    """What all runs of a row share."""
    return (run.label, run.backbone, run.input_size, run.shots, run.prec, run.selection, run.split, run.cross)


def _split_variants(group: list[Run]) -> list[Row]:
    """One row, or one per configuration where a data set was run with several of them.

    The papers' CoOp row has other epochs for ImageNet than for the rest, so different configurations may share a row
    as long as each data set has one only.
    """
    variants: dict[str, set[tuple[str, int | None]]] = defaultdict(set)
    for run in group:
        variants[run.dataset].add((run.tag, run.epoch))
    label, protocol = group[0].label, _describe(group[0])
    if all(len(found) == 1 for found in variants.values()):
        return [Row(label, protocol, group)]
    parts: dict[tuple[str, int | None], list[Run]] = defaultdict(list)
    for run in group:
        parts[run.tag, run.epoch].append(run)
    return [Row(f"{label} [{tag}, epoch {epoch}]", protocol, part) for (tag, epoch), part in parts.items()]


def _describe(run: Run) -> str:
    shots = {0: "zero-shot", -1: "all images"}.get(run.shots, f"{run.shots} shots")
    if run.cross:
        shots = "cross-data-set"
    size = f" {run.input_size[0]} px" if run.input_size and run.input_size[0] != 224 else ""
    parts = [shots, run.backbone.rsplit("/", 1)[-1] if run.backbone.endswith(".pt") else run.backbone]
    parts[-1] += size
    parts += [run.prec] if run.prec else []
    parts += [run.selection] if run.selection != "last_step" else []
    parts += [f"{run.split} split"] if run.split != "test" else []
    parts += ["transductive"] if run.transductive else []
    return ", ".join(parts)


def _name_apart(rows: list[Row]) -> None:
    """Add the protocol to labels that would be equal."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.label] += 1
    for row in rows:
        if counts[row.label] > 1:
            row.label = f"{row.label} ({row.protocol})"


def _fill(row: Row, subsamples: Sequence[str], zero_shot: Mapping[tuple[str, str, str, str], Run]) -> None:
    places: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for run in row.runs:
        places[run.dataset, run.subsample, run.seed].append(run)
    for (dataset, subsample, seed), found in places.items():
        if len({(run.accuracy, run.per_class) for run in found}) > 1:
            folders = " and ".join(str(run.folder) for run in found)
            raise CompareError(
                f"two runs of {row.label} on {dataset} ({subsample}, seed {seed}) differ: {folders}; give one of them"
            )
    for dataset in sorted({run.dataset for run in row.runs}):
        for subsample in subsamples:
            metric = "accuracy" if subsample == "all" else subsample
            runs = row.pick(dataset, subsample)
            if runs:
                below = tuple(seed for seed, run in sorted(runs.items()) if _is_below(run, zero_shot))
                values = {seed: run.accuracy for seed, run in runs.items()}
                row.cells[FAMILIES[0], dataset, metric] = Figure(statistics.fmean(values.values()), values, below)
            values = {seed: run.per_class for seed, run in runs.items() if run.per_class is not None}
            if runs and len(values) == len(runs):
                row.cells[FAMILIES[1], dataset, metric] = Figure(statistics.fmean(values.values()), values)
        if "base" in subsamples:
            for family in FAMILIES[:2]:
                _add_harmonic(row, family, dataset)


def _is_below(run: Run, zero_shot: Mapping[tuple[str, str, str, str], Run]) -> bool:
    reference = zero_shot.get((run.dataset, run.subsample, run.backbone, run.split))
    return reference is not None and not run.is_zero_shot and run.accuracy < reference.accuracy


def _add_harmonic(row: Row, family: str, dataset: str) -> None:
    base, new = (row.cells.get((family, dataset, metric)) for metric in BASE_TO_NEW[:2])
    if base and new:
        shared = base.values.keys() & new.values.keys()
        values = {seed: harmonic(base.values[seed], new.values[seed]) for seed in sorted(shared)}
        row.cells[family, dataset, "HM"] = Figure(harmonic(base.mean, new.mean), values)
