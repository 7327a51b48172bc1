"""Prints rows as tables: for the terminal (rich), as Markdown (tabulate), as LaTeX with booktabs or as CSV (pandas)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .rows import CONFUSION, Column, Figure, Row

__all__ = ["FORMATS", "blocks_of", "print_csv", "print_table"]

FORMATS = ("terminal", "markdown", "latex", "csv")
GROUPS_PER_TABLE = 4
BOLD = {"terminal": "[bold]{}[/bold]", "markdown": "**{}**", "latex": r"\textbf{{{}}}"}

SHORT = {"accuracy": "accuracy", "mean per-class accuracy": "per class", "confusion": "confusion"}

Group = tuple[str, str]  # family, data set
Head = tuple[str, str]  # what a column is over, its metric


def blocks_of(groups: Sequence[Group]) -> list[list[Group]]:
    """Share `groups` out to tables that fit a page; families stay apart unless all of them fit into one table."""
    if len(groups) <= GROUPS_PER_TABLE:
        return [list(groups)] if groups else []
    blocks = []
    for family in dict.fromkeys(family for family, _ in groups):
        members = [group for group in groups if group[0] == family]
        blocks += [members[i : i + GROUPS_PER_TABLE] for i in range(0, len(members), GROUPS_PER_TABLE)]
    return blocks


def print_table(rows: Sequence[Row], groups: Sequence[Group], metrics: Sequence[str], form: str) -> None:
    """Print one table: a line per row, and under each group its metrics."""
    columns = [(f, d, m) for f, d in groups for m in (CONFUSION if f == "confusion" else metrics)]
    columns = [column for column in columns if any(column in row.cells for row in rows)]
    rows = [row for row in rows if any(column in row.cells for column in columns)]
    families, datasets = ({group[i] for group in groups} for i in (0, 1))
    if len(datasets) == 1 and len(families) > 1:
        heads = [(SHORT[f], m) for f, _, m in columns]
        _title(groups[0][1], form)
    else:
        heads = [(d if len(families) == 1 else f"{d} {SHORT[f]}", m) for f, d, m in columns]
        _title(groups[0][0] if len(families) == 1 else "", form)
    best = {column: _best(rows, column) for column in columns}
    body = [[_cell(row, column, best[column], form) for column in columns] for row in rows]
    {"terminal": _terminal, "markdown": _markdown, "latex": _latex}[form]([row.label for row in rows], heads, body)


def _title(text: str, form: str) -> None:
    if text:
        print({"terminal": text, "markdown": f"{text}\n", "latex": f"% {text}"}[form])


def print_csv(rows: Sequence[Row]) -> None:
    """One line per method, data set and metric, with every seed's value."""
    import pandas

    lines = [
        {
            "method": row.label,
            "protocol": row.protocol,
            "dataset": dataset,
            "family": family,
            "metric": metric,
            "mean": round(figure.mean, 4),
            "std": None if figure.std is None else round(figure.std, 4),
            "seeds": " ".join(map(str, sorted(figure.values))),
            "values": " ".join(f"{figure.values[seed]:.4f}" for seed in sorted(figure.values)),
            "below_zero_shot": " ".join(map(str, figure.below)),
            "published": row.published,
        }
        for row in rows
        for (family, dataset, metric), figure in row.cells.items()
    ]
    pandas.DataFrame(lines).to_csv(sys.stdout, index=False)


def _best(rows: Sequence[Row], column: Column) -> float | None:
    """The best measured figure of a column; published ones do not compete, nor do shares of different errors."""
    measured = [row for row in rows if column in row.cells and not row.published]
    figures = [round(row.cells[column].mean, 2) for row in measured]
    bases = {row.runs[0].base or "ZeroshotCLIP" for row in measured}
    if len(figures) < 2 or column[0] == "confusion" and len(bases) > 1:
        return None
    return min(figures) if column[2] == "introduced" else max(figures)


def _cell(row: Row, column: Column, best: float | None, form: str) -> str:
    figure: Figure | None = row.cells.get(column)
    if figure is None:
        return "-"
    text = f"{figure.mean:.2f}"
    if figure.std is not None:
        text += r" $\pm$ " + f"{figure.std:.2f}" if form == "latex" else f" ± {figure.std:.2f}"
    if best is not None and not row.published and round(figure.mean, 2) == best:
        text = BOLD[form].format(text)
    return text + (figure.marks.replace("~", r"\textasciitilde{}") if form == "latex" else figure.marks)


def _terminal(labels: Sequence[str], heads: Sequence[Head], body: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("method")
    for dataset, metric in heads:
        table.add_column(f"{dataset}\n{metric}", justify="right", no_wrap=True)
    for label, cells in zip(labels, body, strict=True):
        table.add_row(escape(label), *cells)
    # a table that is cut to the window's width loses figures; a pipe has no width at all
    widths = [max(len(dataset), len(metric), 16) + 3 for dataset, metric in heads]
    Console(width=max(Console().width, 4 + max(map(len, labels)) + sum(widths))).print(table)


def _markdown(labels: Sequence[str], heads: Sequence[Head], body: list[list[str]]) -> None:
    from tabulate import tabulate

    lines = [[label, *cells] for label, cells in zip(labels, body, strict=True)]
    names = ["method", *(f"{dataset} {metric}" for dataset, metric in heads)]
    align = ["left", *["right"] * len(heads)]
    print(tabulate(lines, names, tablefmt="github", disable_numparse=True, colalign=align))


def _latex(labels: Sequence[str], heads: Sequence[Head], body: list[list[str]]) -> None:
    """booktabs, with the data sets over their metrics."""
    import pandas

    columns = pandas.MultiIndex.from_tuples([(_tex(dataset), metric) for dataset, metric in heads])
    frame = pandas.DataFrame(body, index=[_tex(label) for label in labels], columns=columns)
    print(frame.to_latex(escape=False, multicolumn_format="c", column_format="l" + "r" * len(heads)))


def _tex(text: str) -> str:
    text = text.replace("*published*", r"\emph{published}")
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
