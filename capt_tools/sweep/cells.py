"""The cells of a sweep, methods x data sets x seeds, and which of them wait for which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from ..plan import folders
from ..plan.run_all import stages
from ..plan.runner import Runner
from ..plan.settings import Settings
from ..plan.steps import Job, StopError

__all__ = ["Cell", "Failure", "Node", "carry_out", "cells_of", "graph", "runs_of"]


class Cell(NamedTuple):
    """What one method does on one data set with one seed."""

    method: str  # folder of its scripts; capt:NAME is CAPT on the base learner NAME
    dataset: str
    seed: str

    @property
    def name(self) -> str:
        """As it is told to people."""
        return f"{self.method} {self.dataset} seed {self.seed}"

    @property
    def key(self) -> str:
        """As files are called that are about it."""
        return "_".join(re.sub(r"[^\w.-]", "-", word) for word in self)


class Failure(NamedTuple):
    """Why a cell ended before its end."""

    script: str  # the part that failed, as it is called by hand
    line: str  # for the user; empty where the run has said it
    code: int


@dataclass(frozen=True)
class Node:
    """A cell among others.

    Attributes:
        cell: the cell.
        folders: of all its runs, a base learner's that it trains itself among them.
        shared: folder of a run that it reads, or would make as well -> number of the cell before it that makes it.
    """

    cell: Cell
    folders: tuple[str, ...]
    shared: Mapping[str, int]

    @property
    def after(self) -> frozenset[int]:
        """Numbers of the cells that it waits for."""
        return frozenset(self.shared.values())

    def is_done(self) -> bool:
        """Whether every run ended well."""
        return all(folders.is_done(folder) for folder in self.folders)


def cells_of(methods: Iterable[str], datasets: Iterable[str], seeds: Iterable[str]) -> list[Cell]:
    """Every method of a seed of a data set, before the next seed and the next data set."""
    return [Cell(method, dataset, seed) for dataset, seed, method in product(datasets, seeds, methods)]


def runs_of(settings: Settings, protocol: str, cell: Cell) -> list[Job]:
    """The runs that a cell asks for, as long as nothing is done.

    Raises:
        StopError: a name is unknown, or the method has no such protocol.
    """
    plans = [stage.plan for stage in stages(replace(settings, is_dry=True), protocol, *cell)]
    return [step for plan in plans for step in plan if isinstance(step, Job)]


def graph(settings: Settings, protocol: str, cells: Sequence[Cell], *, is_lenient: bool = False) -> list[Node]:
    """The cells, each with its runs and those that it waits for: always cells before it.

    A run belongs to the first cell that asks for it. So CAPT waits for its base learner, the tests on other data sets
    for the training that they share, and whatever does not depend on one another goes side by side.

    Args:
        settings: of all runs.
        protocol: base2new, xd or few_shot.
        cells: in the order in which they would go one by one.
        is_lenient: a cell that cannot be planned is one without runs, which fails when its turn comes.

    Raises:
        StopError: a cell cannot be planned.
    """
    owner: dict[str, int] = {}
    nodes = []
    for number, cell in enumerate(cells):
        try:
            runs = runs_of(settings, protocol, cell)
        except StopError:
            if not is_lenient:
                raise
            runs = []
        made = tuple(dict.fromkeys(run.folder for run in runs))
        read = [folder for run in runs for folder in run.needs]
        nodes.append(Node(cell, made, {folder: owner[folder] for folder in [*made, *read] if folder in owner}))
        owner |= {folder: number for folder in made if folder not in owner}
    return nodes


def carry_out(settings: Settings, protocol: str, cell: Cell, runner: Runner) -> Failure | None:
    """Do what is left to do of a cell: the one place where a sweep, on whatever machine, starts its runs.

    Returns:
        Why it could not be done; None where it is.
    """
    for stage in stages(settings, protocol, *cell):
        try:
            runner.run(stage.plan)
        except StopError as error:
            if error.line:
                runner.warn(error.line)
            return Failure(f"scripts/{stage.script}", error.line, error.code)
    return None
