"""How a sweep stands: one line a cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tabulate import tabulate

from ..plan import folders
from .cells import Node
from .local import client_of, is_locked
from .state import Sweep, last_line

if TYPE_CHECKING:
    from .slurm import Queued

__all__ = ["Standing", "standings", "table"]

STATES = ("done", "running", "waiting", "failed", "cancelled", "interrupted", "not sent")
EPOCH = re.compile(r"epoch \[(\d+/\d+)\].* eta (\S.*)")


class Standing(NamedTuple):
    """How a cell stands."""

    state: str  # one of STATES
    detail: str  # epoch and time left, what it waits for, or why it failed


def standings(sweep: Sweep, nodes: Sequence[Node], queued: Mapping[str, Queued]) -> list[Standing]:
    """How each cell stands: by its runs' folders, then by what runs or waits, then by how it ended.

    Args:
        sweep: the sweep.
        nodes: its cells.
        queued: what Slurm says of its jobs; empty where the sweep is on this machine.
    """
    has_client = sweep.cluster != "slurm" and client_of(sweep) is not None
    found: list[Standing] = []
    for node in nodes:
        job = queued.get(sweep.jobs.get(node.cell.key, ""))
        waits = ", ".join(nodes[number].cell.name for number in sorted(node.after) if found[number].state != "done")
        record = sweep.record(node.cell)
        if node.is_done():
            found.append(Standing("done", ""))
        elif job is not None:
            found.append(_in_queue(sweep, node, job, waits))
        elif sweep.cluster != "slurm" and is_locked(sweep.log(node.cell)):
            found.append(Standing("running", _progress(node)))
        elif has_client and (record is None or record.state != "failed"):
            found.append(Standing("waiting", f"for {waits or 'its turn'}"))
        elif record is not None and record.state != "running":
            found.append(Standing(record.state, record.line))
        elif node.cell.key in sweep.jobs:  # Slurm ended the job, or it could not even begin
            log = sweep.folder / "slurm" / f"{sweep.jobs[node.cell.key]}_0_log.out"
            found.append(Standing("failed", last_line(log) or f"job {sweep.jobs[node.cell.key]} has left no log"))
        elif record is not None:
            found.append(Standing("interrupted", last_line(sweep.log(node.cell))))
        else:
            found.append(Standing("not sent", ""))
    return found


def _in_queue(sweep: Sweep, node: Node, job: Queued, waits: str) -> Standing:
    record, number = sweep.record(node.cell), sweep.jobs[node.cell.key]
    again = "to go on, " if record is not None else ""
    if job.state == "PENDING":
        reason = {"Dependency": waits or "its turn", "None": "its turn"}.get(job.reason, job.reason)
        return Standing("waiting", f"{again}for {reason} (job {number})")
    if record is not None and record.state == "running":
        return Standing("running", f"{_progress(node)} (job {number}, at most {job.left} more)")
    if record is not None and record.state == "failed":
        return Standing("failed", record.line)
    return Standing("waiting", f"{again}for its turn in job {number}")


def _progress(node: Node) -> str:
    """The run that is going on, the first that is not done, with its epoch and the time left as its log has them."""
    number, folder = next((at for at in enumerate(node.folders, 1) if not folders.is_done(at[1])), (0, ""))
    said = f"run {number} of {len(node.folders)}"
    logs = sorted(
        Path(folder).glob("log.txt*"), key=lambda path: path.stat().st_mtime
    )  # a run that goes on has another
    lines = EPOCH.findall(logs[-1].read_text(encoding="utf-8", errors="replace")) if logs else []
    return f"{said}, epoch {lines[-1][0]}, {lines[-1][1]} left" if lines else said


def table(nodes: Sequence[Node], found: Sequence[Standing]) -> str:
    """A line a cell, and how many stand how."""
    rows = [(*node.cell, *standing) for node, standing in zip(nodes, found, strict=True)]
    counts = Counter(standing.state for standing in found)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    head = ("method", "data set", "seed", "state", "")
    return f"{tabulate(rows, head, disable_numparse=True)}\n\n{len(rows)} cells: {summary}"
