"""Published figures beside measured ones, from published.csv beside this file, and a check of their arithmetic."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .rows import AVERAGE, BASE_TO_NEW, FAMILIES, Figure, Row, harmonic

__all__ = ["arithmetic_notes", "published_rows", "read_published"]

TABLE = Path(__file__).with_name("published.csv")
ROUNDING = 0.0151  # two figures rounded to 0.01, and the result too

Entry = dict[str, dict[str, float]]  # data set -> base, new, HM


def read_published(path: Path = TABLE) -> tuple[dict[str, Entry], dict[str, str]]:
    """Figures by method and data set, and what each method is (backbone, data seen, source) in words."""
    figures: dict[str, Entry] = defaultdict(dict)
    about: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            figures[line["method"]][line["dataset"]] = {m: float(line[m.lower()]) for m in BASE_TO_NEW}
            about[line["method"]] = f"{line['backbone']}, {line['data_seen']}; {line['source']}"
    return dict(figures), about


def published_rows(datasets: Sequence[str], path: Path = TABLE) -> list[Row]:
    """Rows with the printed figures of `datasets`; their averages are recomputed over these data sets by the caller."""
    figures, about = read_published(path)
    wrong = arithmetic_notes(path)
    rows = []
    for method, entry in figures.items():
        mark = " (does not add up)" if any(note.startswith(f"published {method}:") for note in wrong) else ""
        row = Row(f"{method} *published*{mark}", about[method], [], published=True)
        for dataset in datasets:
            for metric in BASE_TO_NEW if dataset in entry else ():
                row.cells[FAMILIES[0], dataset, metric] = Figure(entry[dataset][metric])
        if row.cells:
            rows.append(row)
    return rows


def arithmetic_notes(path: Path = TABLE) -> list[str]:
    """One note for each printed harmonic mean or average that does not follow from the other printed figures."""
    figures, _ = read_published(path)
    notes = []
    for method, entry in figures.items():
        rows = {dataset: values for dataset, values in entry.items() if dataset != AVERAGE}
        for metric in BASE_TO_NEW[:2] if AVERAGE in entry else ():
            printed, mean = entry[AVERAGE][metric], statistics.fmean(v[metric] for v in rows.values())
            if abs(printed - mean) > ROUNDING:
                notes.append(f"published {method}: average {metric} printed {printed:.2f}, its rows give {mean:.2f}")
        for dataset, values in entry.items():
            expected = harmonic(values["base"], values["new"])
            if abs(values["HM"] - expected) > ROUNDING:
                what = f"{dataset} HM printed {values['HM']:.2f}"
                notes.append(f"published {method}: {what}, its base and new give {expected:.2f}")
    return notes
