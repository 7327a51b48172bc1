"""Many runs of train.py in one process, each as if it had the process for itself.

    from capt_tools.many_runs import run_here

    codes = [run_here(["--trainer", "CoOp", "--output-dir", "output/a", ...], log="output/a.out"), ...]

:func:`serve` is what a process of :class:`.plan.lane.Lane` does; a pool may call :func:`run_here` itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from .plan.lane import DONE, VARIABLE

__all__ = ["as_new", "run_here", "serve"]

Main = Callable[[Sequence[str]], int]

FIRST_SEED, FIRST_THREADS, FIRST_DTYPE = torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype()


def run_here(argv: Sequence[str], log: str | os.PathLike[str] | None = None, main: Main | None = None) -> int:
    """One run; its exit code, 1 after an error that train.py does not explain, whose traceback is printed.

    Args:
        argv: what ``train.main`` takes.
        log: file that everything printed is appended to, by libraries and by processes that it starts as well.
        main: ``train.main`` by default.
    """
    if main is None:
        from train import main as train

        main = train
    as_new()
    with _printed_to(log) if log is not None else contextlib.nullcontext():
        try:
            return main(argv)
        except Exception:
            traceback.print_exc()
            return 1


def serve(main: Main) -> int:
    """The run of this process's own arguments, then those that come line by line on the standard input.

    Returns:
        The last exit code. After an error that ``main`` does not explain the process ends as it would with one run
        alone: who knows what is broken in it. So it does on a signal.
    """
    answers = int(os.environ.pop(VARIABLE))
    arguments: list[str] | None = sys.argv[1:]
    code = 0
    while arguments is not None:
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(BrokenPipeError):
            os.write(answers, f"{DONE}{code}\n".encode())
        line = sys.stdin.readline()
        arguments = json.loads(line) if line else None
        if arguments is not None:
            as_new()
    return code


def as_new() -> None:
    """Put back what a run may have changed in its process: generators, threads, torch's switches, memory, peaks."""
    random.seed()
    np.random.seed()  # noqa: NPY002 - the family draws from it
    torch.manual_seed(FIRST_SEED)
    torch.set_num_threads(FIRST_THREADS)
    torch.set_default_dtype(FIRST_DTYPE)
    torch.set_grad_enabled(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    if (weights := sys.modules.get("trainers.capt.backbone.weights")) is not None:
        weights.keep_weights()
    gc.collect()  # trainer and model hold each other
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux alone can forget the largest memory of a process
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def _printed_to(log: str | os.PathLike[str]) -> Iterator[None]:
    """Both streams of this process, down to the file numbers, appended to ``log``."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    try:
        with open(log, "a", encoding="utf-8", buffering=1) as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
    finally:
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)
