"""Each process's share of a batch, and how the shares make the step that one process would take.

A loss is a mean over a share. Weighted by the share's part of the batch, the losses of all processes add up to the
loss of the batch, and so do their gradients. They are summed here, and not averaged by DistributedDataParallel, which
would weigh a share of two images like one of three, rename what is saved, and knows nothing of terms that are no means
over images. What looks at the whole batch says so: :func:`mean_of_rows`, :func:`whole`, :class:`SharedDropout`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from .distributed import gather, rank, sum_over, world

__all__ = [
    "Share",
    "SharedDropout",
    "backward",
    "begin_batch",
    "end_workers",
    "in_turns",
    "mean_figures",
    "mean_of_rows",
    "own_rows",
    "own_turns",
    "share_of",
    "shared_loader",
    "turns_of",
    "whole",
    "whole_batch",
]

# What a loader over other batches takes over.
KEPT = (
    *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Share:
    """Which rows of a whole are this process's.

    Attributes:
        rows: they.
        total: how many there are.
    """

    rows: slice
    total: int

    @property
    def weight(self) -> float:
        """Their part of the whole, from 0 to 1."""
        return (self.rows.stop - self.rows.start) / self.total


_batch: Share | None = None  # of the batch that is trained on


def share_of(total: int) -> Share:
    """This process's share of ``total`` rows: as many as any other's, or one more for the first processes."""
    least, more = divmod(total, world())
    start = rank() * least + min(rank(), more)
    return Share(slice(start, start + least + (rank() < more)), total)


def own_rows(num_rows: int) -> slice:
    """Which rows of a batch of so many images are this process's.

    Raises:
        ValueError: there are more processes than images.
    """
    if num_rows < world():
        raise ValueError(
            f"a batch of {num_rows} cannot be shared by {world()} processes; start fewer (--nproc), or give "
            f"DATALOADER.TRAIN_X.BATCH_SIZE {world()} or more"
        )
    return share_of(num_rows).rows


# ------------------------------------------------------------------------------------------------------ a training step


def begin_batch(num_rows: int) -> None:
    """Say how many images of the batch this process has; the others say theirs."""
    global _batch
    if world() == 1:
        return
    counts = torch.zeros(world(), dtype=torch.long)
    counts[rank()] = num_rows
    sum_over(counts)
    start = int(counts[: rank()].sum())
    _batch = Share(slice(start, start + num_rows), int(counts.sum()))


def _share() -> Share:
    assert _batch is not None, "begin_batch comes first"
    return _batch


def backward(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Back-propagate a scalar, the loss of this process's share, to what is optimised; gradients are the batch's."""
    if world() == 1:
        loss.backward()
        return
    (loss * _share().weight).backward()
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    _sum_gradients(trained)


@torch.no_grad()
def _sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over the processes, all at once; one that no process has stays None."""
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    joined = sum_over(torch.cat([present, *(grad.float().flatten() for grad in flat)]))
    summed = joined[len(parameters) :].split([p.numel() for p in parameters])
    for i, (parameter, grad) in enumerate(zip(parameters, summed, strict=True)):
        if parameter.grad is not None or joined[i] > 0:
            parameter.grad = grad.view_as(parameter).to(parameter.dtype)


@torch.no_grad()
def mean_figures(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Figures, of one element each, that are means over this process's share, as scalars that are means over the batch.

    With one process they are returned as they are.
    """
    if world() == 1 or not figures:
        return dict(figures)
    weight = _share().weight
    joined = sum_over(torch.stack([value.detach().float().mean() * weight for value in figures.values()]))
    return dict(zip(figures, joined.unbind(), strict=True))


def mean_of_rows(rows: Tensor) -> Tensor:
    """Mean ``(...)`` over the rows ``(B, ...)`` of the whole batch; its gradient is that of this process's rows."""
    own = rows.mean(dim=0)
    if world() == 1:
        return own
    return own + (sum_over(own.detach() * _share().weight) - own.detach())


def whole_batch(rows: Tensor) -> tuple[Tensor, slice]:
    """The rows ``(B, ...)`` of the whole batch, with gradients, and which of them are this process's.

    Only while gradients are kept: in a test each process has batches of its own.
    """
    if world() == 1 or not torch.is_grad_enabled():
        return rows, slice(None)
    return whole(rows, _share()), _share().rows


def whole(rows: Tensor, share: Share) -> Tensor:
    """All rows ``(total, ...)`` of which this process has a share; gradients go to who made them."""
    gathered: Tensor = _Whole.apply(rows, share)
    return gathered


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, share: Share) -> Tensor:
        ctx.share = share
        gathered = rows.new_zeros(share.total, *rows.shape[1:])
        gathered[share.rows] = rows
        return sum_over(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_over(grad.clone())[ctx.share.rows], None


class SharedDropout(nn.Dropout):
    """Dropout that falls on the rows of a batch as if one process had them all."""

    def forward(self, x: Tensor) -> Tensor:
        """Of ``(B, ...)``."""
        if world() == 1 or not self.training:
            return super().forward(x)
        share = _share()
        return x * F.dropout(x.new_ones(share.total, *x.shape[1:]), self.p)[share.rows]


# ------------------------------------------------------------------------------------------------------- loaders, lists


def own_turns(items: Sequence[T]) -> Sequence[T]:
    """Those of the items that are this process's in :func:`in_turns`."""
    return items[rank() :: world()]


def in_turns(items: Sequence[T], make: Callable[[T], R]) -> Iterator[R]:
    """``make`` of every item, in their order: each process makes every N-th of them, and has the others from theirs.

    Args:
        items: the same on every process.
        make: gives something that can be pickled, with tensors on the CPU where there are several processes.
    """
    for start in range(0, len(items), world()):
        mine = start + rank()
        made = make(items[mine]) if mine < len(items) else None
        for number, other in enumerate(gather(made)[: len(items) - start]):
            yield made if number == rank() else other  # type: ignore[misc]  # every item of the list was made


def shared_loader(loader: Any) -> Any:
    """A loader of this process's rows of each batch of ``loader``; the other images are not read.

    One that says ``is_shared`` has no other rows.

    Raises:
        ValueError: it is no loader of torch's that makes batches.
    """
    if world() == 1 or getattr(loader, "is_shared", False):
        return loader
    return _with_batches(loader, _OwnRows)


def turns_of(loader: Any) -> Any:
    """A loader of every N-th batch of ``loader``, whole, for :func:`in_turns`.

    Raises:
        ValueError: it is no loader of torch's that makes batches.
    """
    return loader if world() == 1 else _with_batches(loader, _OwnTurns)


class _OwnRows:
    """This process's rows of each batch of a sampler."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[own_rows(len(batch))]

    def __len__(self) -> int:
        return len(self.batches)


class _OwnTurns(_OwnRows):
    """Every N-th batch of a sampler."""

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self.batches), rank(), None, world())

    def __len__(self) -> int:
        return len(own_turns(range(len(self.batches))))


_made: WeakKeyDictionary[Any, dict[type, Any]] = WeakKeyDictionary()  # so that workers stay alive from epoch to epoch


def _with_batches(loader: Any, batches: type[_OwnRows]) -> Any:
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        raise ValueError(f"the batches of {type(loader).__name__} cannot be shared by processes; start one")
    made = _made.setdefault(loader, {})
    if batches not in made:
        options = {name: getattr(loader, name) for name in KEPT}
        made[batches] = type(loader)(loader.dataset, batch_sampler=batches(loader.batch_sampler), **options)
    return made[batches]


# A worker is a fork. Were it to collect garbage that it inherited, with tensors of a GPU in it, CUDA would abort it.
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=gc.freeze)


def end_workers(loader: Any) -> None:
    """End the processes that read images for a loader, and for those made of it here.

    They are kept out of signals, so that at the end of a process that has failed nothing else would end them.
    """
    if not isinstance(loader, DataLoader):
        return
    for one in (loader, *_made.get(loader, {}).values()):
        iterator = one._iterator  # kept where workers stay alive from epoch to epoch
        if iterator is not None:
            iterator._shutdown_workers()
            one._iterator = None
