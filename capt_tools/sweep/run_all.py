"""What stands behind scripts/run_all.sh: a sweep on this machine, told by variables, printing to the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from ..plan.children import stop_signal
from ..plan.lane import Lane
from ..plan.methods import method_in
from ..plan.run_all import DATASETS, METHODS, PROTOCOLS
from ..plan.runner import Runner
from ..plan.script import exit_code
from ..plan.settings import Settings
from ..plan.steps import StopError
from .cells import Node, carry_out, cells_of, graph
from .local import in_groups
from .pool import run_pool

__all__ = ["main", "run_all"]


def main(argv: list[str] | None = None) -> int:
    """Run the protocol that ``argv`` begins with."""
    words = sys.argv[1:] if argv is None else argv
    protocol = words[0] if words and words[0] else "base2new"
    return exit_code(lambda: run_all(protocol, Settings.read(), os.environ))


def run_all(
    protocol: str, settings: Settings, environ: Mapping[str, str], say: Callable[[str], None] | None = None
) -> int:
    """Run everything; 1 if something failed, which is listed then.

    Args:
        protocol: one of PROTOCOLS.
        settings: of all runs.
        environ: of the runs; METHODS, DATASETS and GPUS are read here.
        say: as for :class:`Runner`.

    Raises:
        StopError: protocol or method is unknown or cannot be spread, or a signal came.
    """
    methods = (environ.get("METHODS") or METHODS).split()
    devices = in_groups(environ.get("GPUS", "").split(), settings.processes)
    if protocol not in PROTOCOLS:
        raise StopError(f"unknown protocol {protocol}; there are base2new, xd and few_shot")
    for name in methods:
        method_in(name.partition(":")[0])
    if len(devices) > 1 and protocol == "xd":
        raise StopError("xd trains once for all data sets, so it cannot be spread over GPUS; leave GPUS out")

    cells = cells_of(methods, (environ.get("DATASETS") or DATASETS).split(), settings.seeds)
    failed: list[str] = []
    # One thread each where lanes would take the cores from one another.
    few = {"OMP_NUM_THREADS": "1"} if len(devices) > 1 and not environ.get("OMP_NUM_THREADS") else {}

    def seen(device: str) -> dict[str, str]:
        return {**environ, **few, **({"CUDA_VISIBLE_DEVICES": device} if device else {})}

    with ExitStack() as open_lanes:
        free: list[tuple[str, Lane]] = [(device, open_lanes.enter_context(Lane())) for device in devices or [""]]

        def work(node: Node, device: str) -> bool:
            place = next(place for place in list(free) if place[0] == device)
            free.remove(place)
            failure = carry_out(settings, protocol, node.cell, Runner(settings, seen(device), say, lane=place[1]))
            free.append(place)
            if failure is not None:
                failed.append(f"{node.cell.name}: {failure.script}")
            return stop_signal() is None

        run_pool(graph(settings, protocol, cells, is_lenient=True), devices or [""], work)
    if (number := stop_signal()) is not None:
        raise StopError(code=128 + number)
    runner = Runner(settings, environ, say)
    if failed:
        runner.warn("\n".join([f"{len(failed)} failed:", *failed]))
        return 1
    runner.say(f"All runs are done in {settings.output}")
    return 0


if __name__ == "__main__":  # a process of its own, which ends quietly where its reader has gone, as a shell does
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
