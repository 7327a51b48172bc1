"""Slurm, through submitit: arrays of jobs with what they wait for, what the queue says of them, and how a job goes on.

Near its time limit, or when it is to make room, a job gets submitit's signal (USR2, or what SUBMITIT_PREEMPT_SIGNAL
says). When the run that was going on has saved and ended, submitit puts the job back into the queue, under its id, and
there it goes on. After `scontrol requeue`, Slurm itself does.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import submitit

from ..house import ROOT
from ..plan.steps import StopError
from .groups import arrays, groups_of
from .job import run_cells
from .state import Record, Sweep

__all__ = ["Queued", "Work", "cancel", "minutes", "queue", "submit"]

# A job that never gets anywhere within its limit is not put back for ever.
TIMEOUTS = 100


class Queued(NamedTuple):
    """What Slurm says of a job."""

    state: str  # PENDING, RUNNING, COMPLETING ...
    reason: str  # why it is pending
    left: str  # until its limit
    name: str


class Work:
    """What a job does; submitit stores it, loads it on the node, and asks it for a checkpoint when the job must go."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, keys: list[str]) -> None:
        """Do cells of the sweep in ``folder``; ends the process with 1 if one failed."""
        folder = Path(self.folder)
        failed, number = run_cells(Sweep.find(str(folder.parent.parent), folder.name), keys)
        if number is not None:
            _give_way(number)
        if failed:
            sys.exit(1)

    def checkpoint(self, keys: list[str]) -> submitit.helpers.DelayedSubmission:
        """What the job does when it starts again: the same; done runs are skipped, the one that was stopped goes on."""
        return submitit.helpers.DelayedSubmission(self, keys)


def _give_way(number: int) -> None:
    """End this process; put its job back into the queue unless Slurm has ended the job itself."""
    warned = number in (signal.SIGUSR1, signal.SIGUSR2)
    if warned or _ask("squeue", "-h", "-j", _own_id(), "-o", "%T").strip() == "RUNNING":
        # submitit's handler, which was held back so far: it asks for the checkpoint, puts the job back, and exits
        signal.raise_signal(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])
    sys.exit(128 + number)


def _own_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def submit(sweep: Sweep, args: argparse.Namespace) -> list[str]:
    """Send what is left of a sweep and neither waits nor runs already.

    Returns:
        Ids of the new jobs.

    Raises:
        StopError: there is no Slurm or no submitit here, or Slurm refuses.
    """
    queued = queue()
    _adopt(sweep, queued)
    nodes = sweep.nodes()
    there = {number: sweep.jobs.get(node.cell.key, "") for number, node in enumerate(nodes)}
    there = {number: job for number, job in there.items() if job in queued}
    left = [number for number, node in enumerate(nodes) if number not in there and not node.is_done()]
    groups = groups_of(nodes, left, args.per_job, there)
    keys = {number: [nodes[cell].cell.key for cell in group.nodes] for number, group in enumerate(groups)}
    ids: dict[int, str] = {}
    for array in arrays(groups):
        first = groups[array[0]]
        after = sorted({*first.jobs, *(ids[number] for number in first.after)})
        sent = _send(sweep, args, [keys[number] for number in array], after)
        ids |= dict(zip(array, sent, strict=True))
    return list(ids.values())


def _send(sweep: Sweep, args: argparse.Namespace, cells: list[list[str]], after: Sequence[str]) -> list[str]:
    """Send one array; what is being sent is noted first, so that a killed client finds it again by its name."""
    name = f"{sweep.folder.name}-{secrets.token_hex(3)}"
    sweep.sending = {"name": name, "cells": cells}
    sweep.save()
    for key in (key for keys in cells for key in keys):
        (sweep.folder / "cells" / f"{key}.json").unlink(missing_ok=True)
    executor = submitit.AutoExecutor(sweep.folder / "slurm", cluster="slurm", slurm_max_num_timeout=TIMEOUTS)
    gpus = sweep.settings.processes if args.gpus is None else args.gpus
    executor.update_parameters(**_parameters(args, gpus, name, after))
    try:
        with submitit.helpers.environment_variables(PYTHONPATH=_path()):  # sbatch hands it on to the job
            jobs = executor.map_array(Work(str(sweep.folder)), cells)
    except submitit.core.utils.FailedJobError as error:
        raise StopError(f"Slurm refuses: {' '.join(str(error).split())}") from error
    ids = [job.job_id for job in jobs]
    sweep.jobs |= {key: job for keys, job in zip(cells, ids, strict=True) for key in keys}
    sweep.sending = {}
    sweep.save()
    return ids


def _path() -> str:
    """Where a job finds this module: in the checkout, if it is one's."""
    checkout = [str(ROOT)] if (ROOT / "capt_tools").is_dir() else []
    return os.pathsep.join([*checkout, *filter(None, [os.environ.get("PYTHONPATH")])])


def _parameters(args: argparse.Namespace, gpus: int, name: str, after: Sequence[str]) -> dict[str, Any]:
    """What submitit passes on to sbatch."""
    wanted = {
        "name": name,
        "timeout_min": minutes(args.time),
        "gpus_per_node": gpus or None,
        "cpus_per_task": args.cpus,
        "slurm_array_parallelism": args.at_once,
        "slurm_mem": args.mem,
        "slurm_dependency": f"afterany:{':'.join(after)}" if after else None,
        "stderr_to_stdout": True,
        **{f"slurm_{key}": getattr(args, key) for key in ("partition", "account", "qos", "constraint")},
        "slurm_additional_parameters": dict(word.partition("=")[::2] for word in args.sbatch) or None,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def minutes(time: str) -> int:
    """A time as Slurm writes it, in whole minutes: 90, 90:00, 1:30:00, 1-12, 1-12:30 or 1-12:30:00.

    Raises:
        StopError: it is none.
    """
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", time):
        raise StopError(f"--time is minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS, got {time}")
    units = ["hours", "minutes", "seconds"] if dash or len(parts) == 3 else ["minutes", "seconds"]
    found = timedelta(days=int(days or 0), **{unit: int(part) for unit, part in zip(units, parts, strict=False)})
    return max(1, math.ceil(found.total_seconds() / 60))


def queue() -> dict[str, Queued]:
    """Id of every job of this user that waits or runs -> what Slurm says of it.

    Raises:
        StopError: there is no Slurm here, or it does not answer.
    """
    lines = _ask("squeue", "--me", "-h", "-r", "-o", "%i|%T|%r|%L|%j").splitlines()
    return {job: Queued(*rest) for job, *rest in (line.split("|", 4) for line in lines)}


def cancel(sweep: Sweep) -> list[str]:
    """Take a sweep's jobs out of the queue; those that run save and end.

    Returns:
        Their ids.
    """
    queued = queue()
    _adopt(sweep, queued)
    cells = [cell for cell in sweep.cells if sweep.jobs.get(cell.key) in queued]
    ids = sorted({sweep.jobs[cell.key] for cell in cells})
    if ids:
        _ask("scancel", *ids)
    for cell in cells:
        sweep.note(cell, Record("cancelled"))
    return ids


def _adopt(sweep: Sweep, queued: Mapping[str, Queued]) -> None:
    """Find jobs that a client had sent, but could not note before it was killed."""
    if not sweep.sending:
        return
    cells = sweep.sending["cells"]
    for job, said in queued.items():
        if said.name != sweep.sending["name"]:
            continue
        place = int(job.partition("_")[2] or 0)
        if submitit.core.utils.JobPaths(sweep.folder / "slurm", job).submitted_pickle.exists():
            sweep.jobs |= dict.fromkeys(cells[place], job)
        else:  # the client was killed before it had told the job what to do
            _ask("scancel", job)
    sweep.sending = {}
    sweep.save()


def _ask(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
        StopError: there is no such command, or it failed.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise StopError(f"no Slurm here: {command[0]} is not found; take --cluster local, or a login node") from error
    except subprocess.CalledProcessError as error:
        raise StopError(f"Slurm does not answer: {' '.join(error.stderr.split())}") from error
