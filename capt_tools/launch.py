"""Start train.py in several processes that do one run together: what ``torchrun --nproc_per_node N`` does.

torchrun itself ends with a table on stderr and exit code 1, whatever ended a run. Here the run's own line is all that
is printed, or which process was killed, and the exit code is that of the process that went first, or 128 + the signal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .plan.lane import VARIABLE

__all__ = ["launch"]

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")


def launch(number: int, command: Sequence[str]) -> int:
    """Run a python file in ``number`` processes, and return the exit code.

    Args:
        number: processes.
        command: the file, and its arguments.
    """
    from torch.distributed.run import get_args_parser, run

    args = get_args_parser().parse_args(["--standalone", f"--nproc-per-node={number}", command[0]])
    args.training_script_args = list(command[1:])  # among which are words that its parser would take for its own
    args.signals_to_handle = ",".join(SIGNALS)  # newer torch reads it; for older ones there is _signals
    threads = max(1, (os.cpu_count() or 1) // number)
    with _own_environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", str(threads))), _signals():
        try:
            run(args)
        except ChildFailedError as error:
            number, first = error.get_first_failure()
            if first.exitcode >= 0:
                return first.exitcode
            name = signal.Signals(-first.exitcode).name
            print(
                f"error: process {number} was ended by {name}; the same command goes on from what was saved",
                file=sys.stderr,
            )
            return 128 - first.exitcode
        except SignalException as stop:
            return 128 + int(stop.sigval)
    return 0


@contextlib.contextmanager
def _own_environment(**variables: str) -> Iterator[None]:
    """The processes are no lane of their own, and torchrun's account of what it does is not wanted."""
    before = dict(os.environ)
    os.environ.pop(VARIABLE, None)
    os.environ.update(variables)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """torchrun hands on what it takes as an exception; what it knows not of would end it and leave the processes."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SignalException(f"got signal {number}", signal.Signals(number))

    numbers = [signal.Signals[name] for name in SIGNALS]
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
