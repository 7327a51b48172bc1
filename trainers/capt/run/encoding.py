"""What a frozen image tower makes of image files, out of :mod:`.feature_files` where it was made before.

Images go through the tower in batches that follow from their list alone, each view by itself, so that the numbers are
the same whether they were stored or not, and runs that need three views share them with runs that need ten. An image is
decoded once for all of its views, and workers send several at once. The processes of a run take turns at the batches,
and tell each other what came out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from .distributed import from_first, gather, is_first, world
from .feature_files import FeatureFiles
from .feature_names import FeatureNames, token_bytes
from .shares import in_turns, own_turns
from .views import ViewDataset

__all__ = ["EncodedBatch", "Encoding", "ImageEncoder", "sensible_workers", "tower_of"]

PART_BYTES = 2**26  # of one view's tokens in one file; bounds what is held until a file is written
AHEAD = 2  # chunks of images that a worker reads ahead, torch's default


class ImageEncoder(Protocol):
    """What makes features of images: a base model, or CLIP itself.

    Where they are those of a frozen CLIP without prompts, that CLIP is its attribute ``tower``, and the features may be
    shared with whatever else stands on it.
    """

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images."""


def tower_of(encoder: ImageEncoder) -> PromptedCLIP | None:
    """The frozen CLIP whose own features these are, if they are one's."""
    return getattr(encoder, "tower", None)


def sensible_workers(asked: int) -> int:
    """Processes that read images: as many as were asked for, but no more than this process may use cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, cores)


@dataclass(frozen=True)
class EncodedBatch:
    """Consecutive images of a list.

    Attributes:
        places: in the list, B of them.
        views: the features ``(B, ...)`` of each view.
    """

    places: range
    views: list[ImageFeatures]


@dataclass
class Encoding:
    """Features of all views of some images, batch by batch; what was made before is read.

    Attributes:
        encoder: the frozen tower.
        images: what it looks at.
        device: the tower's.
        batch_size: images in one pass.
        num_workers: processes that read images.
        title: of the progress bar.
        files: where features are kept; None to encode everything.
        with_tokens: whether class and patch tokens are wanted besides the joint feature.
        token_views: of how many views, the first ones; None for all.
        num_read: images whose features were read so far, each view counted.
    """

    encoder: ImageEncoder
    images: ViewDataset
    device: torch.device
    batch_size: int
    num_workers: int = 0
    title: str = ""
    files: FeatureFiles | None = None
    with_tokens: bool = True
    token_views: int | None = None
    num_read: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.views = range(self.images.num_views)
        self.num_images = len(self.images.images)
        tower = tower_of(self.encoder)
        self.names = None
        self._known_names: dict[tuple[range, int], str] = {}
        if self.files is not None and tower is not None:
            self.names = FeatureNames.of(tower, self.images, self.files.root, self.batch_size, self.device)
            if self.names is None:
                print("Image features are not stored: a transform does not say what it does (it has no __repr__)")
        if tower is None or self.names is None:
            self.files = None
            return
        self._per_image = token_bytes(tower)
        self._keeps_tokens = self.with_tokens and self._room_for_tokens()

    def _wants_tokens(self, view: int) -> bool:
        return self.with_tokens and (self.token_views is None or view < self.token_views)

    def _room_for_tokens(self) -> bool:
        assert self.files is not None, "there are no files"
        num_bytes = self.num_images * sum(map(self._wants_tokens, self.views)) * self._per_image
        if num_bytes <= self.files.max_bytes:
            return True
        print(
            f"Patch tokens of {self.num_images:,} images are not stored: {num_bytes / 2**30:.1f} GB, "
            f"CACHE.DISK_GB is {self.files.max_bytes / 2**30:.1f}"
        )
        return False

    # ------------------------------------------------------------------------------------------------------- the walk

    @torch.no_grad()
    def __iter__(self) -> Iterator[EncodedBatch]:
        torch.empty((), dtype=torch.int64).random_()  # as any loader's iterator draws, so that later draws are the same
        parts = self._parts()
        wanted = [(part, [view for view in self.views if not self._is_known(part, view)]) for part in parts]
        wanted = from_first(wanted)  # others may be writing files
        stream = self._pixels(wanted, self.num_workers)
        total = self.num_images * len(self.views)
        with tqdm(total=total, desc=self.title, disable=not sys.stderr.isatty()) as bar:
            for part, missing in wanted:
                for batch in self._walk(part, missing, stream):
                    bar.update(len(batch.places) * len(self.views))
                    yield batch

    def _parts(self) -> list[range]:
        """Whole batches that go into one file a view; the same with and without tokens."""
        step = self.num_images
        if self.files is not None:
            step = self.batch_size * max(1, PART_BYTES // max(1, self.batch_size * self._per_image))
        return _cut(range(self.num_images), step)

    def _walk(self, part: range, missing: list[int], stream: Iterator[list[Tensor]]) -> Iterator[EncodedBatch]:
        known = {view: self._read(part, view) for view in self.views if view not in missing}
        lost = [view for view, stored in known.items() if stored is None]  # damaged, or gone since we looked
        lost = sorted(set().union(*gather(lost)))
        known |= dict.fromkeys(lost)
        sources = [(missing, stream), (lost, self._pixels([(part, lost)], 0))]
        fresh: dict[int, list[ImageFeatures]] = {view: [] for view in [*missing, *lost]}
        batches = _cut(part, self.batch_size)
        made = in_turns(batches, partial(self._make, sources)) if fresh else repeat({}, len(batches))
        for places, encoded in zip(batches, made, strict=True):
            features = {view: _each(one, partial(Tensor.to, device=self.device)) for view, one in encoded.items()}
            for view in fresh:
                if self.files is not None:
                    fresh[view].append(self._kept(features[view]))
            rows = slice(places.start - part.start, places.stop - part.start)
            for view, stored in known.items():
                if stored is not None:
                    features[view] = _each(stored, partial(_rows, rows=rows, device=self.device))
                    self.num_read += len(places)
            yield EncodedBatch(places, [features[view] for view in self.views])
        for view, new in fresh.items():
            self._write(part, view, new)

    def _pixels(self, wanted: list[tuple[range, list[int]]], num_workers: int) -> Iterator[list[Tensor]]:
        """Pixels ``(V, n, 3, H, W)`` of the wanted views, chunk by chunk, of each batch that is this process's."""
        batches = [
            (batch, views) for part, views in wanted if views for batch in own_turns(_cut(part, self.batch_size))
        ]
        if not batches:
            return iter(())
        # Sending a piece costs as much as reading a small image. What waits is one pass or an image a place.
        step = max(1, self.batch_size // (AHEAD * num_workers * len(self.views))) if num_workers else 1
        reads = _Pixels(self.images, [(chunk, views) for batch, views in batches for chunk in _cut(batch, step)])
        workers = min(num_workers, len(reads))
        ahead = AHEAD if workers else None
        pinned = self.device.type == "cuda"
        own = torch.Generator()
        chunks = iter(
            DataLoader(reads, None, num_workers=workers, prefetch_factor=ahead, pin_memory=pinned, generator=own)
        )
        return ([next(chunks) for _ in _cut(batch, step)] for batch, _ in batches)

    def _make(self, sources: list[tuple[list[int], Iterator[list[Tensor]]]], places: range) -> dict[int, ImageFeatures]:
        """Features of a batch, each view's images from the source that has them."""
        features: dict[int, ImageFeatures] = {}
        for views, source in sources:
            features |= self._encode(views, next(source) if views else [])
        if world() == 1:
            return features
        return {view: _each(one, Tensor.cpu) for view, one in features.items()}

    def _encode(self, views: list[int], chunks: list[Tensor]) -> dict[int, ImageFeatures]:
        encoded = {}
        for number, view in enumerate(views):
            batch = torch.cat([chunk[number].to(self.device, non_blocking=True) for chunk in chunks])
            features = self.encoder.encode_image(batch)
            if not self._wants_tokens(view):
                features = ImageFeatures(features.feature, None, None)
            encoded[view] = _each(features, Tensor.contiguous)  # as it is read: layout, too, can change rounding
        return encoded

    # -------------------------------------------------------------------------------------------------------- the files

    def _stored_names(self, part: range, view: int) -> list[str]:
        assert self.names is not None, "there are no files"
        if (part, view) not in self._known_names:
            self._known_names[part, view] = self.names.name(part, view)
        name = self._known_names[part, view]
        return [name, f"{name}-tokens"] if self._wants_tokens(view) else [name]

    def _is_known(self, part: range, view: int) -> bool:
        if self.files is None:
            return False
        return all(self.files.find(name) is not None for name in self._stored_names(part, view))

    def _read(self, part: range, view: int) -> ImageFeatures | None:
        assert self.files is not None, "there are no files"
        found = [self.files.read(name) for name in self._stored_names(part, view)]
        tensors = {key: value for stored in found if stored is not None for key, value in stored.items()}
        if None in found or any(len(value) != len(part) for value in tensors.values()):
            return None
        return ImageFeatures(tensors["feature"], tensors.get("cls"), tensors.get("tokens"))

    def _kept(self, features: ImageFeatures) -> ImageFeatures:
        if not self._keeps_tokens:
            features = ImageFeatures(features.feature, None, None)
        return _each(features, Tensor.cpu)

    def _write(self, part: range, view: int, batches: list[ImageFeatures]) -> None:
        if self.files is None or not batches or not is_first():
            return
        name = self._stored_names(part, view)[0]
        if self.files.find(name) is None:
            self.files.write(name, {"feature": torch.cat([batch.feature for batch in batches])})
        tokens = {
            key: torch.cat(values)
            for key in ("cls", "tokens")  # a ResNet has the first alone
            if (values := [value for batch in batches if (value := getattr(batch, key)) is not None])
        }
        if tokens:
            self.files.write(f"{name}-tokens", tokens)


class _Pixels(Dataset[Tensor]):
    """Item i: some views of a chunk of images, ``(V, n, 3, H, W)``."""

    def __init__(self, images: ViewDataset, items: Sequence[tuple[range, list[int]]]):
        self.images = images
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Tensor:
        chunk, views = self.items[item]
        return torch.stack([torch.stack(self.images.pixels(place, views)) for place in chunk], dim=1)


def _cut(places: range, step: int) -> list[range]:
    return [places[start : start + step] for start in range(0, len(places), max(1, step))]


def _rows(value: Tensor, rows: slice, device: torch.device) -> Tensor:
    return value[rows].to(device)


def _each(features: ImageFeatures, change: Callable[[Tensor], Tensor]) -> ImageFeatures:
    values = (features.feature, features.cls, features.tokens)
    feature, cls, tokens = (None if value is None else change(value) for value in values)
    assert feature is not None, "every encoder gives a feature"
    return ImageFeatures(feature, cls, tokens)
