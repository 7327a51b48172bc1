"""``capt sweep``: submit, status, cancel, collect."""

from __future__ import annotations

import argparse
from dataclasses import replace
from types import ModuleType

from ..house import install
from ..plan.flags import environ_of
from ..plan.runner import Runner
from ..plan.script import exit_code
from ..plan.steps import StopError
from ..tool import parser_of
from . import __doc__ as overview
from .groups import arrays, groups_of
from .options import add_flags_of_sweeps, asked, found, parse
from .state import Sweep
from .status import Standing, standings, table

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv``."""
    parser = parser_of(overview or "")
    parser.add_argument("action", choices=ACTIONS)
    add_flags_of_sweeps(parser)

    def work() -> int:
        args = parse(parser, argv)
        try:
            return ACTIONS[args.action](args)
        except OSError as error:
            raise StopError(
                f"cannot use {error.filename} ({error.strerror})" if error.filename else str(error)
            ) from error

    return exit_code(work)


def submit(args: argparse.Namespace) -> int:
    """Send a sweep, or run it here."""
    sweep, environ = asked(args), environ_of(args)
    if args.dry_run or (environ.get("DRY_RUN") or "0") != "0":
        _show_jobs(sweep, args.per_job)
        return 0
    if sweep.cluster == "slurm":
        slurm = _slurm()
        ids = slurm.submit(sweep, args)
        print(f"Sent {len(ids)} jobs{': ' if ids else ''}{' '.join(ids)}")
        print(_stand(sweep)[1])
        return 0
    from .local import lanes_of, run

    is_debug = sweep.cluster == "debug"
    lanes = [""] if is_debug else lanes_of(args.devices, args.at_once, environ, sweep.settings.processes)
    code = run(sweep, lanes, environ, is_debug)
    print(_stand(sweep)[1])
    return code


def status(args: argparse.Namespace) -> int:
    """Print how a sweep stands."""
    print(_stand(found(args))[1])
    return 0


def cancel(args: argparse.Namespace) -> int:
    """Stop what runs of a sweep, and send nothing more."""
    from . import local

    sweep = found(args)
    ended = _slurm().cancel(sweep) if sweep.cluster == "slurm" else local.cancel(sweep)
    print(f"Told to stop: {' '.join(ended)}" if ended else "Nothing waits or runs")
    return 0


def collect(args: argparse.Namespace) -> int:
    """Print what is missing, and the table of what is there; 1 if something is missing."""
    sweep = found(args)
    stand, _ = _stand(sweep)
    done = sum(standing.state == "done" for standing in stand)
    print(f"{done} of {len(stand)} cells are done")
    for cell, standing in zip(sweep.cells, stand, strict=True):
        if standing.state != "done":
            print(f"{standing.state}: {cell.name}{': ' if standing.detail else ''}{standing.detail}")
    runner = Runner(replace(sweep.settings, is_dry=not done))
    runner.start(runner.tool("compare", sweep.settings.output))
    return 0 if done == len(stand) else 1


ACTIONS = {"submit": submit, "status": status, "cancel": cancel, "collect": collect}


def _stand(sweep: Sweep) -> tuple[list[Standing], str]:
    nodes = sweep.nodes()
    stand = standings(sweep, nodes, _slurm().queue() if sweep.cluster == "slurm" else {})
    return stand, table(nodes, stand)


def _slurm() -> ModuleType:
    try:
        from . import slurm
    except ModuleNotFoundError as error:
        if error.name != "submitit":
            raise
        raise StopError(f"submitit is missing; {install('sweep')}") from error
    return slurm


def _show_jobs(sweep: Sweep, per_job: int) -> None:
    """Print the jobs that there would be: each array on a line of its own."""
    nodes = sweep.nodes()
    groups = groups_of(nodes, [i for i, node in enumerate(nodes) if not node.is_done()], per_job, {})
    for number, array in enumerate(arrays(groups), start=1):
        after = sorted(groups[array[0]].after)
        waits = f" after {'; '.join(_cells(sweep, groups[i].nodes) for i in after)}" if after else ""
        print(f"array {number}, {len(array)} jobs{waits}")
        for i in array:
            print(f"    {_cells(sweep, groups[i].nodes)}")


def _cells(sweep: Sweep, numbers: tuple[int, ...]) -> str:
    return ", ".join(sweep.cells[number].name for number in numbers)
