"""What the frozen base model makes of the training images, computed once per view.

Everything below CAPT's modules is frozen, so a view of an image gives the same tokens in every epoch. View 0 of an
image is the test transform, views 1, 2, ... are training augmentations (:mod:`.views`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ..backbone.prompted_clip import ImageFeatures
from .encoding import Encoding, ImageEncoder
from .feature_files import FeatureFiles
from .memory import MemoryPlan
from .pinned import gathered
from .shares import own_rows
from .views import ImageTransform, ViewDataset, hash_seed

__all__ = [
    "CachedLoader",
    "FeatureCache",
    "ImageEncoder",
    "ViewBatch",
    "ViewDataset",
    "ViewEncoder",
    "cache_where_it_fits",
    "encode_views",
    "hash_seed",
]


CPU = torch.device("cpu")


@dataclass(frozen=True)
class ViewBatch:
    """Base-model features of B views.

    Attributes:
        z: ``(B, D)`` fp32 normalised image feature.
        cls: ``(B, Dv)`` class token, or what stands in for it; None where nobody needs it. Where they are wanted of
            some views alone, only the rows of these are there, in the same order.
        tokens: ``(B, N, Dv)`` patch tokens, likewise; None for a ResNet.
        label: ``(B,)``.
        index: ``(B,)`` data-set index of the image.
        view: ``(B,)``.
    """

    z: Tensor
    cls: Tensor | None
    tokens: Tensor | None
    label: Tensor
    index: Tensor
    view: Tensor

    def to(self, device: torch.device) -> ViewBatch:
        """The same on ``device``."""
        is_read_there = device.type == "cpu"  # at once, perhaps before a copy that nobody waits for has come
        return self.each(lambda value: value.to(device, non_blocking=not is_read_there))

    def each(self, change: Callable[[Tensor], Tensor]) -> ViewBatch:
        """``change`` of every tensor that there is, ``(B, ...)``."""
        changed: dict[str, Any] = {k: None if v is None else change(v) for k, v in vars(self).items()}
        return ViewBatch(**changed)


@torch.no_grad()
def encode_views(
    base: ImageEncoder,
    views: ViewDataset,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    title: str,
    files: FeatureFiles | None = None,
    with_tokens: bool = True,
    token_views: int | None = None,
) -> Iterator[ViewBatch]:
    """Base-model features of all views, image after image, on ``device``; see :class:`.encoding.Encoding`."""
    wanted = with_tokens, token_views
    encoding = Encoding(base, views, torch.device(device), batch_size, num_workers, title, files, *wanted)
    for batch in encoding:
        index = torch.tensor([views.images[place] for place in batch.places])
        label = torch.tensor([views.data_source[i].label for i in index.tolist()])
        yield _interleaved(batch.views, label.to(device), index.to(device))
    if encoding.num_read:
        print(f"{title}: {encoding.num_read:,} of {len(views):,} views were encoded before")


def _interleaved(features: Sequence[ImageFeatures], label: Tensor, index: Tensor) -> ViewBatch:
    """Rows of all views of the first image, of the second ... from V views of B images."""
    num_views = len(features)

    def rows(values: Sequence[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.stack(present, dim=1).flatten(0, 1) if present else None

    view = torch.arange(num_views, device=index.device).repeat(len(index))
    z = rows([normalize(one.feature.float(), dim=-1) for one in features])
    assert z is not None, "there is at least one view"
    return ViewBatch(
        z,
        rows([one.cls for one in features]),
        rows([one.tokens for one in features]),
        label.repeat_interleave(num_views),
        index.repeat_interleave(num_views),
        view,
    )


@dataclass(frozen=True)
class ViewEncoder:
    """How one run looks at images; call it for the features of the views of any training items.

    Attributes:
        test_transform: see :class:`ViewDataset`, as are the next three.
        train_transform: likewise.
        read_image: likewise.
        seed: likewise.
        device: where the features are made.
        batch_size: views in one pass.
        num_workers: processes that read images.
        files: where features are kept.
    """

    test_transform: ImageTransform
    train_transform: ImageTransform
    read_image: Callable[[str], Image.Image]
    seed: int
    device: torch.device
    batch_size: int
    num_workers: int
    files: FeatureFiles | None = None

    def __call__(
        self,
        base: ImageEncoder,
        source: Sequence[Any],
        num_views: int,
        title: str,
        images: Sequence[int] | None = None,
        token_views: int | None = None,
    ) -> Iterator[ViewBatch]:
        """Features by ``base`` of ``num_views`` views of the items ``source``, or of those at the places ``images``;
        with tokens of the first ``token_views`` of them, of all by default.
        """
        transforms = self.test_transform, self.train_transform
        views = ViewDataset(source, num_views, *transforms, self.read_image, self.seed, images)
        how = self.device, self.batch_size, self.num_workers, title, self.files
        return encode_views(base, views, *how, token_views=token_views)

    @torch.no_grad()
    def tokens_of(self, base: ImageEncoder, source: Sequence[Any], asked: Sequence[tuple[int, int]]) -> Tensor:
        """Patch tokens ``(n, N, Dv)`` of n views, each the place of an item in ``source`` and its view.

        An image is decoded once for all of its views that stand side by side in one pass.
        """
        transforms, parts = (self.test_transform, self.train_transform), []
        views = ViewDataset(source, 1 + max(view for _, view in asked), *transforms, self.read_image, self.seed)
        for start in range(0, len(asked), self.batch_size):
            by_image = groupby(asked[start : start + self.batch_size], key=itemgetter(0))
            pixels = [one for place, group in by_image for one in views.pixels(place, [view for _, view in group])]
            tokens = base.encode_image(torch.stack(pixels).to(self.device)).tokens
            assert tokens is not None, "a ResNet has no patch tokens"
            parts.append(tokens)
        return torch.cat(parts)


class FeatureCache:
    """Features of V views of every image, kept in main memory.

    Args:
        batches: what :func:`encode_views` yields, in its order.
        num_views: V.
        num_images: how many there will be; then memory is taken once, and not twice for a while.
        token_views: of how many views, the first ones, there are tokens in the batches; None for all.
    """

    def __init__(
        self,
        batches: Iterator[ViewBatch],
        num_views: int,
        num_images: int | None = None,
        token_views: int | None = None,
    ):
        self.num_views = num_views
        self.token_views = num_views if token_views is None else min(num_views, token_views)
        host = (batch.to(torch.device("cpu")) for batch in batches)
        self.rows = _joined(list(host)) if num_images is None else _filled(host, num_images, self._views_of)

    def _views_of(self, name: str) -> int:
        return self.token_views if name in ("cls", "tokens") else self.num_views

    def __len__(self) -> int:
        """Images, not views."""
        return len(self.rows.label) // self.num_views

    def take(self, index: Tensor, view: Tensor, device: torch.device = CPU) -> ViewBatch:
        """Rows of images ``(B,)`` and views ``(B,)``; without tokens where not all of these views have them.

        They are on the CPU; where ``device``, to which they go from here, is a GPU, in pinned memory.
        """
        has_tokens = bool((view < self.token_views).all())
        rows: dict[str, Any] = {
            name: gathered(value, index * self._views_of(name) + view, device)
            for name, value in vars(self.rows).items()
            if value is not None and (has_tokens or self._views_of(name) == self.num_views)
        }
        return ViewBatch(**{"cls": None, "tokens": None, **rows})

    def views(self, num_views: int, batch_size: int = 512) -> Iterator[ViewBatch]:
        """The first ``num_views`` views of every image, batch by batch."""
        assert num_views <= self.num_views, f"a cache of {self.num_views} views has not {num_views}"
        item = torch.arange(len(self) * num_views)
        for part in item.split(batch_size):
            yield self.take(part // num_views, part % num_views)


def _joined(parts: Sequence[ViewBatch]) -> ViewBatch:
    rows: dict[str, Any] = {
        name: None if value is None else torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
    }
    return ViewBatch(**rows)


def _filled(parts: Iterator[ViewBatch], num_images: int, views_of: Callable[[str], int]) -> ViewBatch:
    rows: dict[str, Any] = {"cls": None, "tokens": None}
    done: Counter[str] = Counter()
    for part in parts:
        for name, value in vars(part).items():
            if value is not None:
                if not done[name]:
                    rows[name] = value.new_empty(num_images * views_of(name), *value.shape[1:])
                rows[name][done[name] : done[name] + len(value)] = value
                done[name] += len(value)
    wrong = [
        f"{num} rows came, not {len(value)} of {name}"
        for name, value in rows.items()
        if value is not None and (num := done[name]) != len(value)
    ]
    assert not wrong, wrong[0]
    return ViewBatch(**rows)


def cache_where_it_fits(
    make: Callable[[int], Iterator[ViewBatch]], num_images: int, plan: MemoryPlan, max_gigabytes: float
) -> FeatureCache | None:
    """A cache of as many views as fit, or None where not even one does; says in one line which.

    Args:
        make: features of so many views, as :func:`encode_views` yields them.
        num_images: number of images.
        plan: how many views fit.
        max_gigabytes: what they had to fit into.
    """
    wanted, num_views = plan.wanted_views, plan.cached_views
    if num_views == 0:
        print(
            f"Feature cache off: {plan.needed_bytes / 2**30:.1f} GB for {wanted} views, CACHE.MAX_GB is "
            f"{max_gigabytes:.1f}; the image tower runs every step"
        )
        return None
    cache = FeatureCache(make(num_views), num_views, num_images, plan.token_views)
    fewer = "" if num_views == wanted else f", {wanted - num_views} more do not fit CACHE.MAX_GB {max_gigabytes:.1f}"
    print(f"Feature cache: {len(cache):,} images x {num_views} views, {plan.cache_bytes / 2**30:.2f} GB{fewer}")
    return cache


class CachedLoader:
    """A training loader over a cache: each image once an epoch, in one of its views.

    Order and views follow from (seed, epoch) alone, so a resumed run goes on as if it had never stopped. Of several
    processes each has its share of every batch.

    Args:
        cache: the features.
        batch_size: images a step; the last, smaller batch is dropped as in Dassl's training loader.
        seed: the run's seed.
        shuffle: False for Dassl's SequentialSampler.
        device: to which the batches go from here.
    """

    is_shared = True

    def __init__(
        self, cache: FeatureCache, batch_size: int, seed: int, shuffle: bool = True, device: torch.device = CPU
    ):
        self.cache = cache
        self.device = device
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.dataset = cache  # some hosts ask a loader for its data set's length

    def __len__(self) -> int:
        num_images = len(self.cache)
        return num_images // self.batch_size if num_images >= self.batch_size else 1

    def __iter__(self) -> Iterator[dict[str, ViewBatch]]:
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        num_images = len(self.cache)
        order = torch.randperm(num_images, generator=generator) if self.shuffle else torch.arange(num_images)
        view = torch.randint(self.cache.num_views, (num_images,), generator=generator)
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            index = index[own_rows(len(index))]
            yield {"features": self.cache.take(index, view[index], self.device)}
