"""Draws one picture of the demo data set: a glyph in a cluttered scene, reproducible to the pixel.

The picture is a function of ``(stream, class, index)`` and of `VERSION` only: each has a random generator of its own,
so neither the order of drawing nor the number of workers nor the hash seed of the process can change it.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from .glyph_pen import Colour, Pen
from .glyph_shapes import SHAPES

__all__ = ["IMAGE_SIZE", "STREAMS", "VERSION", "draw", "rng_of"]

#: Raise it whenever a pixel of any picture changes; drawn folders carry it.
VERSION = 1
#: Pixels along a side.
IMAGE_SIZE = 48
#: Splits and the pretraining stream each draw from their own seeds and share no picture.
STREAMS = {"train": 0, "val": 1, "test": 2, "pretraining": 3, "captions": 4}

_SEED = 2603_02557
_OVERSAMPLE = 3
_LUMA = np.array([0.299, 0.587, 0.114])


def rng_of(stream: str, label: int, index: int) -> np.random.Generator:
    """The random generator of one picture."""
    return np.random.default_rng([_SEED, VERSION, STREAMS[stream], label, index])


def draw(stream: str, label: int, index: int) -> Image.Image:
    """One picture.

    Args:
        stream: a key of `STREAMS`.
        label: class, index into `SHAPES`.
        index: number of the picture within class and stream.

    Returns:
        RGB image of `IMAGE_SIZE` x `IMAGE_SIZE` pixels.
    """
    rng = rng_of(stream, label, index)
    side = IMAGE_SIZE * _OVERSAMPLE
    tones = _pick_tones(rng)
    image = _background(rng, tones["ground"], side)
    canvas = ImageDraw.Draw(image)
    _clutter(rng, canvas, tones["ground"], side)
    pen = Pen(canvas, _pick_pose(rng, side), tones, stroke=side * rng.uniform(0.02, 0.035))
    shape = list(SHAPES.values())[label]
    shape(pen)
    if rng.random() < 0.3:
        _scratch(rng, canvas, side)
    return _noisy(rng, image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))


def _pick_pose(rng: np.random.Generator, side: int) -> np.ndarray:
    """Rotation to 15 degrees, size 68 to 92 % of the picture, mirror, slight aspect change, anywhere inside."""
    angle = math.radians(rng.uniform(-15, 15))
    half = side * rng.uniform(0.68, 0.92) / 2
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    aspect = rng.uniform(0.88, 1.12)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * half * aspect, half / aspect])
    slack = (side / 2 - half) * 0.9
    centre = side / 2 + rng.uniform(-slack, slack, size=2)
    return np.column_stack([linear, centre])


def _pick_tones(rng: np.random.Generator) -> dict[str, Colour]:
    """Any hues, but dark ink on a lighter ground: so a small model learns the shapes in minutes."""
    ground = _pick_colour(rng, 130, 255)
    body = _pick_colour(rng, 110, 255)
    accent = _pick_colour(rng, 60, 255)
    ink = _pick_colour(rng, 0, 60)
    return {"ground": ground, "body": body, "accent": accent, "ink": ink}


def _pick_colour(rng: np.random.Generator, darkest: float, lightest: float) -> Colour:
    """A random colour whose brightness lies in the range (best of 24 tries)."""
    tries = rng.integers(0, 256, size=(24, 3))
    luma = tries @ _LUMA
    excess = np.maximum(darkest - luma, 0) + np.maximum(luma - lightest, 0)
    return tuple(tries[excess.argmin()].tolist())


def _background(rng: np.random.Generator, ground: Colour, side: int) -> Image.Image:
    """The ground colour with a soft gradient in a random direction."""
    angle = rng.uniform(0, math.tau)
    axis = np.linspace(-1, 1, side)
    ramp = (math.cos(angle) * axis[None] + math.sin(angle) * axis[:, None]) * rng.uniform(0, 35)
    pixels = np.array(ground)[None, None] + ramp[..., None] * rng.uniform(0.4, 1.0, size=3)
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _clutter(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, ground: Colour, side: int) -> None:
    """Faint strokes and patches behind the glyph."""
    for _ in range(int(rng.integers(3, 8))):
        shade = np.clip(np.array(ground) + rng.uniform(-45, 45, size=3), 0, 255).astype(int)
        colour = tuple(shade.tolist())
        x, y, u, v = (rng.random(4) * side).round(2).tolist()
        if rng.random() < 0.5:
            canvas.line([(x, y), (u, v)], fill=colour, width=int(rng.integers(2, 9)))
        else:
            radius = rng.uniform(0.03, 0.12) * side
            canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _scratch(rng: np.random.Generator, canvas: ImageDraw.ImageDraw, side: int) -> None:
    """A thin line across the glyph."""
    x, y, u, v = (rng.random(4) * side).round(2).tolist()
    canvas.line([(x, y), (u, v)], fill=tuple(rng.integers(0, 256, size=3).tolist()), width=3)


def _noisy(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Brightness, contrast and grain of a cheap camera."""
    pixels = np.asarray(image, dtype=np.float64)
    contrast, shift, grain = rng.uniform(0.75, 1.1), rng.uniform(-20, 20), rng.uniform(3, 20)
    pixels = (pixels - 128) * contrast + 128 + shift + rng.uniform(-grain, grain, size=pixels.shape)
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
