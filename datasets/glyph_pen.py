"""The pen that the demo data set's shapes are drawn with."""

from __future__ import annotations

import math

import numpy as np
from PIL import ImageDraw

__all__ = ["Colour", "Pen", "Point"]

Point = tuple[float, float]
Colour = tuple[int, int, int]


class Pen:
    """Draws in glyph coordinates (-1 ... 1, y down) through an affine map onto a canvas.

    Args:
        canvas: what to draw on.
        matrix: (2, 3) affine map from glyph coordinates to canvas pixels.
        tones: colours by name: ``body``, ``accent``, ``ink`` (outlines, details) and ``ground`` (the background).
        stroke: width of a line in canvas pixels.
    """

    def __init__(
        self, canvas: ImageDraw.ImageDraw, matrix: np.ndarray, tones: dict[str, Colour], stroke: float
    ) -> None:
        self._canvas = canvas
        self._matrix = matrix
        self._tones = tones
        self._stroke = stroke

    def fill(self, points: list[Point], tone: str, outlined: bool = True) -> None:
        """A filled polygon, with an outline in ink unless it is ink itself."""
        placed = self._place(points)
        self._canvas.polygon(placed, fill=self._tones[tone])
        if outlined and tone != "ink":
            self._stroke_along([*placed, placed[0]], 0.7)

    def disc(self, x: float, y: float, rx: float, ry: float, tone: str, outlined: bool = True) -> None:
        """A filled ellipse around (x, y)."""
        self.fill(self.ring(x, y, rx, ry, 0, 360), tone, outlined)

    def line(self, points: list[Point], width: float = 1.0) -> None:
        """A polyline in ink, ``width`` in units of the stroke."""
        self._stroke_along(self._place(points), width)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float = 1.0) -> None:
        """Part of an ellipse in ink; degrees clockwise from the right."""
        self.line(self.ring(x, y, rx, ry, start, end), width)

    @staticmethod
    def ring(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
        """Points along an ellipse; degrees clockwise from the right."""
        count = max(6, round(abs(end - start) / 15)) + 1
        angles = [math.radians(start + (end - start) * i / (count - 1)) for i in range(count)]
        return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]

    def _place(self, points: list[Point]) -> list[Point]:
        xy = np.asarray(points) @ self._matrix[:, :2].T + self._matrix[:, 2]
        # Rounded, so that the last bit of a platform's sine cannot move a pixel.
        return [tuple(p) for p in np.round(xy, 2).tolist()]

    def _stroke_along(self, placed: list[Point], width: float) -> None:
        self._canvas.line(placed, fill=self._tones["ink"], width=max(2, round(self._stroke * width)), joint="curve")
