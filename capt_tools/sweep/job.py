"""What a job does: cells of a sweep, one after the other, until they are done or the job is told to stop.

The runs are processes beside the job's own: one that dies takes neither the next nor the bookkeeping with it. Several
cells share one (:mod:`..plan.lane`), so that short runs start Python and read CLIP once. Slurm sends its signals to
every process of a job, so the run that is going on gets them itself, saves and ends; here they are only remembered
until it has. Passing them on would make them a second signal, on which a run ends at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

from ..plan import folders
from ..plan.lane import Lane
from ..plan.runner import Runner
from ..plan.settings import Settings
from .cells import Node, carry_out
from .state import Record, Sweep, last_line

__all__ = ["held_back", "run_cells"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def run_cells(sweep: Sweep, keys: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[int, int | None]:
    """Do what is left to do of some cells, and note how they end.

    Args:
        sweep: theirs.
        keys: of the cells, in order.
        environ: of the runs.

    Returns:
        How many failed; and the signal that stopped it before its end, if one did.
    """
    nodes = {node.cell.key: node for node in sweep.nodes()}
    failed = 0
    with held_back() as got, Lane() as lane:
        for node in (nodes[key] for key in keys):
            if got:
                break
            failed += not _run(sweep, node, list(nodes.values()), environ, got, lane if len(keys) > 1 else None)
    left = [key for key in keys if not nodes[key].is_done()]
    return failed, got[0] if got and left else None


def _run(
    sweep: Sweep, node: Node, nodes: Sequence[Node], environ: Mapping[str, str], got: list[int], lane: Lane | None
) -> bool:
    """Do what is left of a cell; False where it failed, which being stopped is not."""
    if lacking := {number for folder, number in node.shared.items() if not folders.is_done(folder)}:
        names = ", ".join(nodes[number].cell.name for number in sorted(lacking))
        sweep.note(node.cell, Record("failed", f"it needs what {names} should have made, which is not there"))
        return False
    sweep.note(node.cell, Record("running"))
    path = sweep.log(node.cell)
    with open(path, "ab") as log:
        failure = carry_out(sweep.settings, sweep.protocol, node.cell, _runner(sweep.settings, environ, log, lane))
    if failure is None:
        sweep.note(node.cell, None)
    elif got:
        if sweep.record(node.cell) != Record("cancelled"):
            sweep.note(node.cell, Record("interrupted", last_line(path)))
    else:
        sweep.note(node.cell, Record("failed", failure.line or last_line(path)))
    return failure is None or bool(got)


def _runner(settings: Settings, environ: Mapping[str, str], log: IO[bytes], lane: Lane | None) -> Runner:
    """A runner whose runs' words end in ``log``, by way of this process where they share one, as each has a log."""
    if lane is None:
        return Runner(settings, environ, log=log)

    def write(line: str) -> None:
        log.write(f"{line}\n".encode())
        log.flush()

    return Runner(settings, environ, write, lane=lane)


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Remember signals for the time of the context, and do nothing about them; gives the list of those that came."""
    got: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        got.append(number)

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
