"""Thumbnails as data URIs, each image once, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from capt.run.pictures import ImageError, read_image

__all__ = ["Album"]


class Album:
    """Thumbnails of the images of one page.

    Args:
        budget: bytes that all thumbnails together may take in the page.
        side: longer side of a thumbnail in pixels.
    """

    def __init__(self, budget: int, side: int = 80):
        self.budget, self.side = budget, side
        self.shown = False  # how the run read its pictures, and so how they look here
        self.uris: list[str] = []
        self.missing: set[str] = set()  # files that are not there or cannot be read
        self.refused: set[str] = set()  # files beyond the budget
        self._place: dict[tuple[str, bool], int] = {}

    def add(self, file: Path) -> int:
        """Place of the image's thumbnail in :attr:`uris`; -1 where it has none."""
        path = str(file)
        key = path, self.shown
        if key in self._place:
            return self._place[key]
        if path in self.missing or path in self.refused:
            return -1
        if self.budget <= 0:
            self.refused.add(path)
            return -1
        try:
            uri = self._uri(path)
        except ImageError:
            self.missing.add(path)
            return -1
        if len(uri) > self.budget:
            self.budget = 0
            self.refused.add(path)
            return -1
        self.budget -= len(uri)
        self._place[key] = len(self.uris)
        self.uris.append(uri)
        return self._place[key]

    def _uri(self, file: str) -> str:
        small = read_image(file, self.shown, side=2 * self.side)
        small.thumbnail((self.side, self.side))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=72, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
