"""The processes of one run, as torchrun starts them: they take the same steps, and the first alone writes and speaks.

With one process, and wherever :func:`joined` was not entered, nothing here does anything. What each process does of a
batch, a test or a list of images is in :mod:`.shares`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = [
    "PeerLostError",
    "collective",
    "from_first",
    "gather",
    "has_failed",
    "highest",
    "is_first",
    "is_told_elsewhere",
    "joined",
    "quiet_unless_first",
    "rank",
    "sum_over",
    "take_device",
    "wait_for_all",
    "world",
]

T = TypeVar("T")

PATIENCE = timedelta(
    hours=1
)  # of who waits for the others, who may be drawing a data set; a dead one is noticed at once
WORD, END = 2.0, 10.0  # seconds that a process waits for another's word, then for torchrun to end it
FAILED = "capt/failed"  # counts, in the store, the processes that have an error to tell

_store: Store | None = None


class PeerLostError(RuntimeError):
    """Another process of the run has ended, or cannot be reached any more."""


def world() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if _store is not None else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if _store is not None else 0


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes where torchrun has started several; leave them at the end.

    CPU tensors go by gloo and CUDA tensors by NCCL, which starts when it is first used.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    store, number, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    _store = store
    try:
        yield
        if not has_failed():  # else somebody is gone, and may be waited for in vain
            dist.destroy_process_group()
    finally:
        _store = None


def take_device(use_cuda: bool) -> None:
    """Make "cuda" mean a GPU of this process's own.

    Raises:
        ValueError: there are fewer GPUs than processes on this machine.
    """
    if world() == 1 or not use_cuda or not torch.cuda.is_available():
        return
    number, count = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if number >= count:
        raise ValueError(
            f"there are more processes than GPUs, of which {count} can be seen; start {count} (--nproc), or give "
            "USE_CUDA False"
        )
    torch.cuda.set_device(number)


@contextlib.contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Drop what all but the first process print; what :mod:`train` says of an error is printed outside of this."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


# ---------------------------------------------------------------------------------------------------------- collectives


def collective(act: Callable[[], T]) -> T:
    """Do what all processes do together.

    Raises:
        PeerLostError: one of them is gone.
    """
    try:
        return act()
    except RuntimeError as error:
        raise PeerLostError(
            "another process of this run is gone; the same command goes on from what was saved"
        ) from error


def gather(value: T) -> list[T]:
    """The values of all processes, in their order; tensors in them are on the CPU."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    collective(lambda: dist.all_gather_object(values, value))
    return values


def from_first(value: T) -> T:
    """The first process's value; tensors in it are on the CPU."""
    if world() == 1:
        return value
    values = [value]
    collective(lambda: dist.broadcast_object_list(values, src=0))
    return values[0]


def sum_over(value: Tensor) -> Tensor:
    """Add up a tensor of any shape over the processes, in place."""
    if world() > 1:
        collective(lambda: dist.all_reduce(value))
    return value


def highest(value: int) -> int:
    """The highest of the processes' numbers."""
    if world() == 1:
        return value
    number = torch.tensor(value)
    collective(lambda: dist.all_reduce(number, dist.ReduceOp.MAX))
    return int(number)


def wait_for_all() -> None:
    """Return when every process has come this far, so that what the first one wrote before is there for all."""
    gather(None)


# --------------------------------------------------------------------------------------------------------------- errors


def has_failed() -> bool:
    """Whether some process has had an error to tell."""
    if _store is None:
        return False
    try:
        return _store.add(FAILED, 0) > 0
    except RuntimeError:  # the store went with its process
        return True


def is_told_elsewhere(error: BaseException) -> bool:
    """Whether another process tells why the run ends, so that there is one line and not one of each process.

    Where it was another's end that this process noticed, it then waits to be ended by torchrun: the exit code of the
    run is that of the first process to go.
    """
    if _store is None:
        return False
    if not isinstance(error, PeerLostError):
        return _add_failure() > 1
    until = time.monotonic() + WORD
    while not has_failed() and time.monotonic() < until:
        time.sleep(0.05)
    if not has_failed():  # it was killed, perhaps
        return _add_failure() > 1
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(END)
    return True


def _add_failure() -> int:
    assert _store is not None, "there is one process"
    try:
        return _store.add(FAILED, 1)
    except RuntimeError:  # the store went with its process
        return 1
