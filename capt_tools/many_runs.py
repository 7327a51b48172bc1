"""Many runs of train.py in one process, each as if it had the process for itself; see :class:`.plan.lane.Lane`."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .plan.lane import DONE, VARIABLE

__all__ = ["as_new", "serve"]

Main = Callable[[Sequence[str]], int]

FIRST_SEED, FIRST_THREADS, FIRST_DTYPE = torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype()


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
