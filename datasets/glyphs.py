"""Glyphs: the demo data set, drawn by the project itself on first use; nothing is downloaded."""

from __future__ import annotations

import os

from dassl.data.datasets import DATASET_REGISTRY

from . import glyph_files, glyph_shapes
from .few_shot import FewShotDataset
from .splits import SPLITS, Items, make_datum


@DATASET_REGISTRY.register()
class Glyphs(FewShotDataset):
    """48 kinds of drawn pictures of 48 x 48 pixels: 1,536 train, 384 val, 1,200 test images.

    16 pairs of classes differ in one detail (a handle, stripes, a bite ...); each pair lies within the base half or
    within the new half. The pictures are drawn into ``<DATASET.ROOT>/glyphs/images/`` when they are not there yet.

    Attributes:
        LOOK_ALIKES: the pairs ``(a, b)``; ``assets/glyphs_clip.pt`` takes most of b's pictures for a.

    Raises:
        ValueError: the folder holds pictures of another version of this data set.
    """

    LOOK_ALIKES = glyph_shapes.LOOK_ALIKES

    dataset_dir = "glyphs"
    image_folder = "images"

    def locate(self, root: str) -> None:
        """Draw the pictures unless they are there, then set the paths."""
        folder = os.path.join(os.path.abspath(os.path.expanduser(root)), type(self).dataset_dir)
        glyph_files.ensure_drawn(os.path.join(folder, type(self).image_folder))
        super().locate(root)

    @classmethod
    def where(cls) -> str:
        """What to do about missing pictures."""
        return f"delete the folder {cls.dataset_dir}/ under the data root and they are drawn anew"

    def read_data(self) -> tuple[Items, Items, Items]:
        """List the drawn pictures; labels follow `glyph_files.CLASS_NAMES`."""
        train, val, test = (self._list_split(split) for split in SPLITS)
        return train, val, test

    def _list_split(self, split: str) -> Items:
        return [
            make_datum(self.path(self.image_folder, *member), label, name)
            for label, name in enumerate(glyph_files.CLASS_NAMES)
            for member in glyph_files.members(split, name)
        ]
