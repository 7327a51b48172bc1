"""Views of image files: view 0 is the test transform, views 1, 2, ... are training augmentations.

An augmentation is drawn from (seed, image, view) alone: the number of loader workers, the order and a resumed run
change nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["ImageTransform", "ViewDataset", "hash_seed"]

ImageTransform = Callable[[Image.Image], Tensor]


class ViewDataset(Dataset[tuple[Tensor, int, int, int]]):
    """Views of images: item i is view i % V of the (i // V)-th image.

    Args:
        data_source: items with ``impath`` and ``label`` (Dassl's Datum).
        num_views: V.
        test_transform: PIL image to tensor, for view 0.
        train_transform: PIL image to tensor, random, for the others.
        read_image: path to RGB PIL image.
        seed: the views' seed.
        images: data-set indices of the images to serve; all of them by default.
    """

    def __init__(
        self,
        data_source: Sequence[Any],
        num_views: int,
        test_transform: ImageTransform,
        train_transform: ImageTransform,
        read_image: Callable[[str], Image.Image],
        seed: int,
        images: Sequence[int] | None = None,
    ):
        self.data_source = data_source
        self.num_views = num_views
        self.test_transform = test_transform
        self.train_transform = train_transform
        self.read_image = read_image
        self.seed = seed
        self.images = range(len(data_source)) if images is None else images

    def __len__(self) -> int:
        return len(self.images) * self.num_views

    def __getitem__(self, item: int) -> tuple[Tensor, int, int, int]:
        place, view = divmod(item, self.num_views)
        index = self.images[place]
        return self.pixels(place, [view])[0], self.data_source[index].label, index, view

    def pixels(self, place: int, views: Sequence[int]) -> list[Tensor]:
        """Some views, each ``(3, H, W)``, of the image at ``place``, which is read once for all of them."""
        index = self.images[place]
        image = self.read_image(self.data_source[index].impath)
        return [self._view(image, index, view) for view in views]

    def _view(self, image: Image.Image, index: int, view: int) -> Tensor:
        if view == 0:
            return self.test_transform(image)
        with _seeded(self.seed, index, view):
            return self.train_transform(image)


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """All three global generators seeded from ``key``, and put back afterwards.

    Transforms draw from whichever global generator they like (torchvision's from torch and ``random``, users' often
    from numpy's legacy one), so a generator of our own would not reach them.
    """
    seed = int(np.random.SeedSequence([abs(k) for k in key]).generate_state(1)[0])
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - transforms use it
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - transforms use it
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU's generator, too
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 - transforms use it
        torch.set_rng_state(states[2])


def hash_seed(*key: int) -> int:
    """One 63-bit seed from several numbers, the same on every machine."""
    return int(np.random.SeedSequence([abs(k) for k in key]).generate_state(1, np.uint64)[0] >> 1)
