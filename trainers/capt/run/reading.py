"""Which way a run reads its pictures, and Dassl's loaders taught to read them by :mod:`.pictures`.

Dassl's loaders call the ``read_image`` that they find in their module. That name is replaced, in this process and in a
loader's workers, whichever Dassl it is; no file of it changes. The trainer that was built last decides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from yacs.config import CfgNode

from .pictures import read_shown, read_stored

if TYPE_CHECKING:
    from dassl.engine import TrainerX as Host
else:
    Host = object  # the class that follows in the trainer's bases

__all__ = ["WAYS", "ReadingMixin", "lend_reader", "reader_of", "way_of"]

Reader = Callable[[str], Image.Image]

WAYS = ("auto", "stored", "shown")  # values of INPUT.PICTURES
NAME = "read_image"


def way_of(cfg: CfgNode, dataset: Any) -> str:
    """``stored`` or ``shown``: as ``INPUT.PICTURES`` says; auto: as the data set does, stored where it says nothing.

    Raises:
        ValueError: the key holds another word.
    """
    way = cfg.INPUT.get("PICTURES", "auto")
    if way not in WAYS:
        raise ValueError(f"INPUT.PICTURES must be one of {', '.join(WAYS)}, got {way!r}")
    return str(getattr(dataset, "pictures", "stored") if way == "auto" else way)


def reader_of(cfg: CfgNode, dataset: Any) -> Reader:
    """The reader of the way that :func:`way_of` says."""
    return read_shown if way_of(cfg, dataset) == "shown" else read_stored


def lend_reader(loader: Any, read: Reader) -> None:
    """Let a loader of Dassl's read by ``read``, and its workers with it; says so where it has a reader of its own."""
    homes = tuple(c.__module__ for c in type(loader.dataset).__mro__ if hasattr(sys.modules[c.__module__], NAME))
    if not homes:
        print(f"Pictures: {type(loader.dataset).__name__} of this repository reads by itself, not by INPUT.PICTURES")
        return
    earlier = loader.worker_init_fn
    start = _WorkerStart(homes, read, earlier.then if isinstance(earlier, _WorkerStart) else earlier)
    start.lend()
    loader.worker_init_fn = start


@dataclass(frozen=True)
class _WorkerStart:
    """What a worker does first; one that is not forked imports Dassl anew."""

    homes: tuple[str, ...]
    read: Reader
    then: Callable[[int], None] | None

    def lend(self) -> None:
        for home in self.homes:
            setattr(sys.modules[home], NAME, self.read)

    def __call__(self, worker: int) -> None:
        self.lend()
        if self.then is not None:
            self.then(worker)


class ReadingMixin(Host):
    """Comes before Dassl's ``TrainerX``; all of the run's loaders read the same way."""

    pictures = "stored"  # or shown
    read_image: Reader = staticmethod(read_stored)

    def build_data_loader(self) -> None:
        """Dassl's, reading as ``INPUT.PICTURES`` says."""
        super().build_data_loader()
        self.pictures = way_of(self.cfg, self.dm.dataset)
        self.read_image = reader_of(self.cfg, self.dm.dataset)
        for loader in (self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader):
            if loader is not None:
                lend_reader(loader, self.read_image)
