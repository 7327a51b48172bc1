"""Augmentation that does not depend on the number of worker processes.

A worker process has random states of its own, so with Dassl's loader the number of workers changes the augmented
images and with them the trained weights. Here the main process gives each sample a seed:

- ``SeededSampler`` yields the indices of another sampler as ``SeededIndex``, an int that carries a seed. The seeds
  follow from one number per epoch and the place in the epoch.
- That number is read from a *copy* of the global torch generator. Nothing is drawn from the generator itself, so the
  order of the images is the one Dassl gives for the same seed.
- ``sample_seed`` seeds ``random``, ``numpy`` and ``torch`` around the transform of one sample, and gives the process
  its random states back.
- ``EpochLoader`` makes a loader with persistent workers draw from the global generator as often as one without.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.sampler import Sampler

if TYPE_CHECKING:
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    from .data_manager import DatasetWrapper
    from .samplers import IndexSampler

__all__ = ["EpochLoader", "SeededIndex", "SeededSampler", "sample_seed"]

_MASK = (1 << 64) - 1


class SeededIndex(int):
    """An index that brings the seed of its sample's augmentation along."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        """Return ``index`` with the attribute ``seed``."""
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[type[SeededIndex], tuple[int, int]]:
        return SeededIndex, (int(self), self.seed)


class SeededSampler(Sampler[int]):
    """Another sampler's indices, each with a seed.

    Args:
        sampler: Sampler that gives the order.
    """

    def __init__(self, sampler: IndexSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        """Yield ``SeededIndex``."""
        base = _peek()
        for position, index in enumerate(self.sampler):
            yield SeededIndex(index, _mix(base + position))

    def __len__(self) -> int:
        return len(self.sampler)


class EpochLoader(DataLoader[dict[str, Any]]):
    """``DataLoader`` that takes the same numbers from the global generator with and without persistent workers.

    A new iterator draws one number to seed its workers; one that is used again draws none. Drawing it here keeps the
    order of all later epochs independent of the number of workers.
    """

    dataset: DatasetWrapper

    def __iter__(self) -> _BaseDataLoaderIter:
        """Start an epoch."""
        if self.persistent_workers and self._iterator is not None:
            torch.empty((), dtype=torch.int64).random_()
        return super().__iter__()


def _peek() -> int:
    """A number that follows from the state of the global torch generator, which stays as it is."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


def _mix(x: int) -> int:
    """64-bit finaliser of splitmix64: neighbouring numbers give unrelated seeds."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@contextlib.contextmanager
def sample_seed(index: int) -> Iterator[None]:
    """Seed the three generators from a ``SeededIndex`` and restore them afterwards; a plain int does nothing."""
    seed = getattr(index, "seed", None)
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU's generator too
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
