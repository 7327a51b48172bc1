"""Compares the runs below one or more output folders: the papers' tables, with every protocol in a row of its own.

    capt compare output
    capt compare output --format markdown --published
    capt compare output --against CoOp

Reads ``results.json`` of this repository's runs, and the logs of other repositories of the CoOp family. Tables show
plain and mean per-class accuracy on base and new classes with their harmonic mean, mean ± deviation over seeds, and
how much of the base model's confusion each method resolves and introduces. LaTeX and CSV need the extra ``tables``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import compat  # noqa: F401  makes `import dassl` work, which trainers.capt needs

from .comparison.confusion import add_confusion
from .comparison.paired import compare_rows
from .comparison.published import arithmetic_notes, published_rows
from .comparison.render import FORMATS, blocks_of, print_csv, print_table
from .comparison.rows import AVERAGE, BASE_TO_NEW, FAMILIES, Row, average, make_rows
from .comparison.runs import CompareError, Run, find_runs
from .house import install
from .tool import exit_code, parser_of

KINDS = {"Base-to-new": (("base", "new"), BASE_TO_NEW), "All classes": (("all",), ("accuracy",))}


def compare(args: argparse.Namespace) -> None:
    """Print everything that `args` asks for."""
    runs, unfinished = find_runs(args.output)
    notes = [f"unfinished, left out: {folder}" for folder in unfinished]
    shown: list[Row] = []
    for title, (subsamples, metrics) in KINDS.items():
        rows = make_rows(runs, subsamples)
        if not rows:
            continue
        datasets = sorted({run.dataset for row in rows for run in row.runs})
        notes += add_confusion(rows, datasets, subsamples)
        if args.published and "new" in subsamples:
            rows += published_rows(datasets)
            notes += arithmetic_notes()
        if len(datasets) > 1:
            notes += average(rows, datasets, metrics)
            datasets = [*datasets, AVERAGE]
        shown += rows
        if args.format == "csv":
            continue
        _say(f"\n{title}", args.format)
        for line in _about(rows, subsamples, args.seeds):
            _say(line, args.format)
        groups = [(f, d) for f in FAMILIES for d in datasets if _has(rows, f, d)]
        for block in blocks_of(groups):
            print()
            print_table(rows, block, metrics, args.format)
        if args.against:
            _print_paired(rows, args.against, metrics, args.format)
    if args.format == "csv":
        print_csv(shown)
    else:
        _print_notes(shown, notes, args.format)


def _has(rows: Sequence[Row], family: str, dataset: str) -> bool:
    return any(key[:2] == (family, dataset) for row in rows for key in row.cells)


def _say(text: str, form: str) -> None:
    """A line of text beside the tables; a comment in LaTeX."""
    print("\n".join(f"% {line}" if line else line for line in text.split("\n")) if form == "latex" else text)


def _about(rows: Sequence[Row], subsamples: Sequence[str], expected: Sequence[int] | None) -> list[str]:
    """Data, protocols, seeds and code that the table rests on."""
    runs = [run for row in rows for run in row.runs]
    lines = [f"data: {', '.join(_sizes(runs, dataset, subsamples) for dataset in sorted({r.dataset for r in runs}))}"]
    seeds = set(expected) if expected else {seed for row in rows if not _seedless(row) for seed in row.seeds}
    for row in rows:
        if row.published:
            lines.append(f"{row.label}: {row.protocol}")
            continue
        missing = [] if _seedless(row) else _missing(row, seeds, subsamples)
        gap = f", missing {'; '.join(missing)}" if missing else ""
        lines.append(f"{row.label}: {row.protocol}; seeds {' '.join(map(str, row.seeds))}{gap}")
    commits = sorted({run.commit or "unknown" for run in runs})
    return [*lines, f"code: {', '.join(commits)}"]


def _seedless(row: Row) -> bool:
    return not row.published and row.runs[0].is_zero_shot


def _missing(row: Row, seeds: set[int], subsamples: Sequence[str]) -> list[str]:
    datasets = sorted({run.dataset for run in row.runs})
    gaps = {(d, part): sorted(seeds - row.pick(d, part).keys()) for d in datasets for part in subsamples}
    return [f"{dataset} {part} seed {' '.join(map(str, gap))}" for (dataset, part), gap in gaps.items() if gap]


def _sizes(runs: Sequence[Run], dataset: str, subsamples: Sequence[str]) -> str:
    counts = []
    for part in subsamples:
        found = sorted({r.num_test for r in runs if (r.dataset, r.subsample) == (dataset, part) and r.num_test})
        if found:
            counts.append(f"{part} {'/'.join(f'{n:,}' for n in found)}")
    return f"{dataset} ({', '.join(counts)} test images)"


def _print_paired(rows: Sequence[Row], name: str, metrics: Sequence[str], form: str) -> None:
    from tabulate import tabulate

    lines = [
        [
            p.row,
            p.metric,
            p.pairs,
            f"{p.difference:+.2f}",
            *("-" if v is None else f"{v:.4f}" for v in (p.t_p, p.wilcoxon_p)),
        ]
        for p in compare_rows(rows, name, metrics)
    ]
    _say(f"\nAgainst {name}: difference in points over the pairs of data set and seed that both have", form)
    head = ["method", "metric", "pairs", "difference", "p (paired t)", "p (Wilcoxon)"]
    style = {"terminal": "simple", "markdown": "github", "latex": "latex_booktabs"}[form]
    print(tabulate(lines, head, tablefmt=style, disable_numparse=True))


def _print_notes(rows: Sequence[Row], notes: Sequence[str], form: str) -> None:
    marks = "".join(figure.marks for row in rows for figure in row.cells.values())
    if "~" in marks:
        notes = [*notes, "~ the spread over seeds is above 3 points"]
    for row in rows:
        below = [
            f"{dataset} {metric} (seed {' '.join(map(str, figure.below))})"
            for (_, dataset, metric), figure in row.cells.items()
            if figure.below
        ]
        if below:
            notes = [*notes, f"! {row.label} lies below zero-shot CLIP: {', '.join(below)}"]
    print()
    for note in dict.fromkeys(notes):
        _say(f"note: {note}" if form != "markdown" else f"- {note}", form)


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("output", type=Path, nargs="+", help="folders with runs below them")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="default: terminal")
    parser.add_argument("--published", action="store_true", help="add the published figures")
    parser.add_argument("--against", metavar="METHOD", help="paired tests of every method against this row")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds that should be there (default: those of any row)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; return 0, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    return exit_code(
        lambda: compare(args),
        bad_input=(CompareError,),
        optional=("pandas", "rich", "scipy", "tabulate"),
        hint=install("tables"),
    )
