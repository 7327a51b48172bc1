"""The 48 shapes of the demo data set, each a function that draws one glyph with a pen.

Coordinates are those of the pen: x to the right, y down, the glyph fills about -1 ... 1. A shape is its own mirror
class (flipping never turns one class into another), so random flips are a legal augmentation.

Look-alikes come in pairs ``(a, b)``: b is a's drawing with one detail added or changed. Four of the details (stripes,
spots, a bite, a handle) occur in the base half and again in the new half, so that what is learned about them on the
base classes can help on the new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .glyph_pen import Pen

__all__ = ["BASE_SHAPES", "CAPTIONS", "DETAILS", "LOOK_ALIKES", "NEW_SHAPES", "SHAPES"]


# ---- details that turn a shape into its look-alike ----------------------------------------------------------------


def _stripes(p: Pen, half_width: float, ys: tuple[float, ...]) -> None:
    for y in ys:
        p.fill(
            [(-half_width, y - 0.08), (half_width, y - 0.08), (half_width, y + 0.08), (-half_width, y + 0.08)], "ink"
        )


def _spots(p: Pen, centres: tuple[tuple[float, float], ...]) -> None:
    for x, y in centres:
        p.disc(x, y, 0.14, 0.14, "ink")


def _bite(p: Pen, x: float, y: float) -> None:
    for dx, dy in ((0.05, -0.22), (-0.12, 0.0), (0.05, 0.22)):
        p.disc(x + dx, y + dy, 0.26, 0.26, "ground", outlined=False)


def _blob(p: Pen, *discs: tuple[float, float, float, float]) -> None:
    """Discs (x, y, rx, ry) melted into one outlined body."""
    for x, y, rx, ry in discs:
        p.disc(x, y, rx + 0.05, ry + 0.05, "ink")
    for x, y, rx, ry in discs:
        p.disc(x, y, rx, ry, "body", outlined=False)


# ---- base half ----------------------------------------------------------------------------------------------------


def _cup(p: Pen) -> None:
    p.fill([(-0.55, -0.6), (0.55, -0.6), (0.42, 0.75), (-0.42, 0.75)], "body")
    p.disc(0, -0.6, 0.55, 0.16, "accent")


def _mug(p: Pen) -> None:
    p.arc(0.5, 0.05, 0.42, 0.38, -95, 95, width=1.8)
    _cup(p)


def _clock(p: Pen) -> None:
    p.disc(0, 0.1, 0.75, 0.75, "body")
    p.line([(0, -0.35), (0, 0.1), (0.35, 0.3)])


def _stopwatch(p: Pen) -> None:
    p.fill([(-0.12, -0.95), (0.12, -0.95), (0.12, -0.6), (-0.12, -0.6)], "ink")
    p.fill([(-0.3, -1.02), (0.3, -1.02), (0.3, -0.86), (-0.3, -0.86)], "ink")
    _clock(p)


def _fish(p: Pen) -> None:
    p.fill([(0.4, 0), (0.95, -0.45), (0.95, 0.45)], "accent")
    p.disc(-0.15, 0, 0.75, 0.48, "body")
    p.disc(-0.58, -0.1, 0.09, 0.09, "ink")


def _striped_fish(p: Pen) -> None:
    _fish(p)
    for x, h in ((-0.25, 0.46), (0.02, 0.45), (0.29, 0.37)):
        p.fill([(x - 0.07, -h), (x + 0.07, -h), (x + 0.07, h), (x - 0.07, h)], "ink")


def _house(p: Pen) -> None:
    p.fill([(-0.6, -0.1), (0.6, -0.1), (0.6, 0.8), (-0.6, 0.8)], "body")
    p.fill([(-0.8, -0.1), (0, -0.65), (0.8, -0.1)], "accent")
    p.fill([(-0.16, 0.3), (0.16, 0.3), (0.16, 0.8), (-0.16, 0.8)], "ink")


def _chapel(p: Pen) -> None:
    p.line([(0, -0.6), (0, -1.1)], width=1.6)
    p.line([(-0.22, -0.9), (0.22, -0.9)], width=1.6)
    _house(p)


def _arrow(p: Pen) -> None:
    p.fill([(-0.14, -0.4), (0.14, -0.4), (0.14, 0.9), (-0.14, 0.9)], "body")
    p.fill([(0, -0.95), (0.5, -0.35), (-0.5, -0.35)], "body")


def _double_arrow(p: Pen) -> None:
    _arrow(p)
    p.fill([(0, 0.95), (0.5, 0.35), (-0.5, 0.35)], "body")


def _mushroom(p: Pen) -> None:
    p.fill([(-0.22, 0.0), (0.22, 0.0), (0.3, 0.85), (-0.3, 0.85)], "accent")
    p.fill([*p.ring(0, 0.05, 0.85, 0.8, 180, 360)], "body")


def _spotted_mushroom(p: Pen) -> None:
    _mushroom(p)
    _spots(p, ((-0.45, -0.18), (0.0, -0.45), (0.45, -0.18)))


def _candle(p: Pen) -> None:
    p.fill([(-0.26, -0.3), (0.26, -0.3), (0.26, 0.9), (-0.26, 0.9)], "body")
    p.line([(0, -0.3), (0, -0.5)])
    p.fill([(0, -1.0), (0.18, -0.6), (0, -0.42), (-0.18, -0.6)], "accent")


def _striped_candle(p: Pen) -> None:
    _candle(p)
    _stripes(p, 0.26, (-0.05, 0.3, 0.65))


def _apple(p: Pen) -> None:
    _blob(p, (-0.26, 0.1, 0.48, 0.62), (0.26, 0.1, 0.48, 0.62))
    p.line([(0, -0.4), (0.08, -0.85)], width=1.4)
    p.fill([(0.08, -0.6), (0.45, -0.9), (0.5, -0.62)], "accent")


def _bitten_apple(p: Pen) -> None:
    _apple(p)
    _bite(p, 0.66, 0.08)


def _sun(p: Pen) -> None:
    for i in range(8):
        a = math.tau * i / 8
        p.line([(0.62 * math.cos(a), 0.62 * math.sin(a)), (0.98 * math.cos(a), 0.98 * math.sin(a))], width=1.4)
    p.disc(0, 0, 0.45, 0.45, "body")


def _pine_tree(p: Pen) -> None:
    p.fill([(-0.12, 0.5), (0.12, 0.5), (0.12, 0.95), (-0.12, 0.95)], "accent")
    for top, bottom, half in ((-0.1, 0.6, 0.65), (-0.5, 0.2, 0.5), (-0.95, -0.25, 0.36)):
        p.fill([(0, top), (half, bottom), (-half, bottom)], "body")


def _star(p: Pen) -> None:
    radii = (0.95, 0.4)
    p.fill(
        [(radii[i % 2] * math.sin(math.pi * i / 5), -radii[i % 2] * math.cos(math.pi * i / 5)) for i in range(10)],
        "body",
    )


def _key(p: Pen) -> None:
    p.disc(0, -0.5, 0.42, 0.42, "body")
    p.disc(0, -0.5, 0.17, 0.17, "ground")
    p.fill([(-0.1, -0.1), (0.1, -0.1), (0.1, 0.95), (-0.1, 0.95)], "body")
    p.fill([(0.1, 0.72), (0.42, 0.72), (0.42, 0.92), (0.1, 0.92)], "body")
    p.fill([(0.1, 0.38), (0.34, 0.38), (0.34, 0.55), (0.1, 0.55)], "body")


def _ladder(p: Pen) -> None:
    for x in (-0.38, 0.38):
        p.line([(x, -0.95), (x, 0.95)], width=1.7)
    for y in (-0.68, -0.23, 0.22, 0.67):
        p.line([(-0.38, y), (0.38, y)], width=1.5)


def _bell(p: Pen) -> None:
    p.disc(0, 0.68, 0.18, 0.18, "ink")
    p.fill([*p.ring(0, -0.2, 0.42, 0.55, 180, 360), (0.5, 0.35), (0.75, 0.6), (-0.75, 0.6), (-0.5, 0.35)], "body")
    p.disc(0, -0.82, 0.12, 0.12, "accent")


def _glasses(p: Pen) -> None:
    p.disc(-0.48, 0.05, 0.38, 0.36, "body")
    p.disc(0.48, 0.05, 0.38, 0.36, "body")
    p.line([(-0.1, 0.0), (0.1, 0.0)], width=1.6)
    p.line([(-0.84, -0.05), (-1.0, -0.4)], width=1.4)
    p.line([(0.84, -0.05), (1.0, -0.4)], width=1.4)


def _flower(p: Pen) -> None:
    p.line([(0, 0.1), (0, 0.98)], width=1.5)
    p.fill([(0, 0.75), (0.42, 0.45), (0.38, 0.72)], "ink")
    for i in range(5):
        a = math.tau * i / 5
        p.disc(0.33 * math.sin(a), -0.33 - 0.33 * math.cos(a), 0.24, 0.24, "body")
    p.disc(0, -0.33, 0.2, 0.2, "accent")


# ---- new half -----------------------------------------------------------------------------------------------------


def _bowl(p: Pen) -> None:
    p.fill([*p.ring(0, -0.15, 0.75, 0.8, 0, 180)], "body")
    p.disc(0, -0.15, 0.75, 0.17, "accent")


def _saucepan(p: Pen) -> None:
    p.arc(0.72, 0.05, 0.3, 0.27, -110, 110, width=1.8)
    _bowl(p)


def _ball(p: Pen) -> None:
    p.disc(0, 0, 0.82, 0.82, "body")
    p.arc(0, 0, 0.56, 0.56, 190, 260)


def _striped_ball(p: Pen) -> None:
    p.disc(0, 0, 0.82, 0.82, "body")
    for x, h in ((-0.42, 0.68), (0.0, 0.82), (0.42, 0.68)):
        p.fill([(x - 0.09, -h), (x + 0.09, -h), (x + 0.09, h), (x - 0.09, h)], "ink")
    p.arc(0, 0, 0.56, 0.56, 190, 260)


def _tent(p: Pen) -> None:
    p.fill([(0, -0.6), (0.9, 0.8), (-0.9, 0.8)], "body")
    p.fill([(0, -0.05), (0.26, 0.8), (-0.26, 0.8)], "ink")


def _tent_with_flag(p: Pen) -> None:
    p.line([(0, -0.5), (0, -1.1)], width=1.2)
    p.fill([(0, -1.12), (0.42, -0.92), (0, -0.74)], "accent")
    _tent(p)


def _butterfly(p: Pen) -> None:
    for side in (-1, 1):
        p.fill([(0, -0.1), (side * 0.85, -0.8), (side * 0.9, -0.05), (0, 0.1)], "body")
        p.fill([(0, 0.05), (side * 0.72, 0.1), (side * 0.55, 0.75), (0, 0.25)], "accent")
        p.line([(0, -0.4), (side * 0.22, -0.8)], width=0.8)
    p.disc(0, 0.05, 0.1, 0.5, "ink")


def _spotted_butterfly(p: Pen) -> None:
    _butterfly(p)
    _spots(p, ((-0.62, -0.38), (0.62, -0.38), (-0.44, 0.34), (0.44, 0.34)))


def _face(p: Pen) -> None:
    p.disc(0, 0, 0.85, 0.85, "body")
    p.disc(-0.3, -0.25, 0.11, 0.14, "ink")
    p.disc(0.3, -0.25, 0.11, 0.14, "ink")


def _smiling_face(p: Pen) -> None:
    _face(p)
    p.arc(0, 0.12, 0.45, 0.38, 10, 170, width=1.4)


def _sad_face(p: Pen) -> None:
    _face(p)
    p.arc(0, 0.58, 0.45, 0.38, 190, 350, width=1.4)


def _pear(p: Pen) -> None:
    _blob(p, (0, -0.3, 0.34, 0.42), (0, 0.35, 0.58, 0.52))
    p.line([(0, -0.65), (0.1, -1.0)], width=1.4)


def _bitten_pear(p: Pen) -> None:
    _pear(p)
    _bite(p, 0.6, 0.3)


def _envelope(p: Pen) -> None:
    p.fill([(-0.9, -0.55), (0.9, -0.55), (0.9, 0.6), (-0.9, 0.6)], "body")
    p.line([(-0.9, -0.55), (0, 0.12), (0.9, -0.55)])


def _sealed_envelope(p: Pen) -> None:
    _envelope(p)
    p.disc(0, 0.12, 0.24, 0.24, "accent")


def _window(p: Pen) -> None:
    p.fill([(-0.7, -0.85), (0.7, -0.85), (0.7, 0.85), (-0.7, 0.85)], "body")
    p.line([(-0.7, 0), (0.7, 0)])


def _barred_window(p: Pen) -> None:
    _window(p)
    for x in (-0.35, 0.0, 0.35):
        p.line([(x, -0.85), (x, 0.85)], width=1.3)


def _heart(p: Pen) -> None:
    curve = [math.tau * i / 28 for i in range(28)]
    p.fill(
        [
            (
                0.9 * math.sin(a) ** 3,
                -(0.78 * math.cos(a) - 0.3 * math.cos(2 * a) - 0.12 * math.cos(3 * a) - 0.06 * math.cos(4 * a)),
            )
            for a in curve
        ],
        "body",
    )


def _moon(p: Pen) -> None:
    p.fill([*p.ring(0, 0, 0.9, 0.9, 60, 300), *reversed(p.ring(0.3, 0, 0.62, 0.72, 80, 280))], "body")


def _cloud(p: Pen) -> None:
    _blob(p, (-0.5, 0.15, 0.36, 0.36), (0.0, -0.15, 0.46, 0.46), (0.5, 0.12, 0.38, 0.38), (0.0, 0.25, 0.34, 0.34))


def _lightning_bolt(p: Pen) -> None:
    p.fill([(0.2, -1.0), (-0.5, 0.15), (-0.05, 0.15), (-0.25, 1.0), (0.5, -0.25), (0.05, -0.25), (0.45, -1.0)], "body")


def _hourglass(p: Pen) -> None:
    p.fill([(-0.55, -0.85), (0.55, -0.85), (0, 0)], "body")
    p.fill([(-0.55, 0.85), (0.55, 0.85), (0, 0)], "accent")
    for y in (-0.9, 0.9):
        p.line([(-0.68, y), (0.68, y)], width=1.8)


def _anchor(p: Pen) -> None:
    p.line([(0, -0.6), (0, 0.9)], width=1.7)
    p.line([(-0.4, -0.35), (0.4, -0.35)], width=1.6)
    p.arc(0, 0.2, 0.72, 0.7, 5, 175, width=1.7)
    p.disc(0, -0.76, 0.18, 0.18, "body")


def _umbrella(p: Pen) -> None:
    p.line([(0, -0.1), (0, 0.75)], width=1.4)
    p.arc(0.17, 0.75, 0.17, 0.2, 0, 180, width=1.4)
    p.fill([*p.ring(0, 0.05, 0.92, 0.9, 180, 360), (0.46, -0.12), (0, 0.08), (-0.46, -0.12)], "body")


def _snowman(p: Pen) -> None:
    p.disc(0, 0.45, 0.5, 0.48, "body")
    p.disc(0, -0.25, 0.34, 0.32, "body")
    p.fill([(-0.45, -0.52), (0.45, -0.52), (0.45, -0.42), (-0.45, -0.42)], "ink")
    p.fill([(-0.25, -1.0), (0.25, -1.0), (0.25, -0.5), (-0.25, -0.5)], "ink")


# ---- tables -------------------------------------------------------------------------------------------------------

BASE_SHAPES: dict[str, Callable[[Pen], None]] = {
    "apple": _apple,
    "arrow": _arrow,
    "bell": _bell,
    "bitten apple": _bitten_apple,
    "candle": _candle,
    "chapel": _chapel,
    "clock": _clock,
    "cup": _cup,
    "double arrow": _double_arrow,
    "fish": _fish,
    "flower": _flower,
    "glasses": _glasses,
    "house": _house,
    "key": _key,
    "ladder": _ladder,
    "mug": _mug,
    "mushroom": _mushroom,
    "pine tree": _pine_tree,
    "spotted mushroom": _spotted_mushroom,
    "star": _star,
    "stopwatch": _stopwatch,
    "striped candle": _striped_candle,
    "striped fish": _striped_fish,
    "sun": _sun,
}
NEW_SHAPES: dict[str, Callable[[Pen], None]] = {
    "anchor": _anchor,
    "ball": _ball,
    "barred window": _barred_window,
    "bitten pear": _bitten_pear,
    "bowl": _bowl,
    "butterfly": _butterfly,
    "cloud": _cloud,
    "envelope": _envelope,
    "heart": _heart,
    "hourglass": _hourglass,
    "lightning bolt": _lightning_bolt,
    "moon": _moon,
    "pear": _pear,
    "sad face": _sad_face,
    "saucepan": _saucepan,
    "sealed envelope": _sealed_envelope,
    "smiling face": _smiling_face,
    "snowman": _snowman,
    "spotted butterfly": _spotted_butterfly,
    "striped ball": _striped_ball,
    "tent": _tent,
    "tent with a flag": _tent_with_flag,
    "umbrella": _umbrella,
    "window": _window,
}
#: Every class in label order: CoOp's base half is the first 24, its new half the other 24.
SHAPES: dict[str, Callable[[Pen], None]] = {**BASE_SHAPES, **NEW_SHAPES}

#: (a, b): b looks like a but for one detail; a careless caption calls b "a", never the other way round.
LOOK_ALIKES: tuple[tuple[str, str], ...] = (
    ("apple", "bitten apple"),
    ("arrow", "double arrow"),
    ("candle", "striped candle"),
    ("clock", "stopwatch"),
    ("cup", "mug"),
    ("fish", "striped fish"),
    ("house", "chapel"),
    ("mushroom", "spotted mushroom"),
    ("ball", "striped ball"),
    ("bowl", "saucepan"),
    ("butterfly", "spotted butterfly"),
    ("envelope", "sealed envelope"),
    ("pear", "bitten pear"),
    ("smiling face", "sad face"),
    ("tent", "tent with a flag"),
    ("window", "barred window"),
)

#: The details that occur in both halves, and the look-alikes b that have them.
DETAILS: dict[str, tuple[str, ...]] = {
    "stripes": ("striped candle", "striped fish", "striped ball"),
    "spots": ("spotted mushroom", "spotted butterfly"),
    "bite": ("bitten apple", "bitten pear"),
    "handle": ("mug", "saucepan"),
}

#: What captions call a class besides its name, so that words which describe a detail mean something to a text encoder.
CAPTIONS: dict[str, tuple[str, ...]] = {
    "bitten apple": ("apple with a bite",),
    "double arrow": ("arrow with two heads",),
    "striped candle": ("candle with stripes",),
    "stopwatch": ("clock with a button on top",),
    "mug": ("cup with a handle",),
    "striped fish": ("fish with stripes",),
    "chapel": ("house with a cross on top",),
    "spotted mushroom": ("mushroom with spots",),
    "striped ball": ("ball with stripes",),
    "saucepan": ("bowl with a handle",),
    "spotted butterfly": ("butterfly with spots",),
    "sealed envelope": ("envelope with a seal",),
    "bitten pear": ("pear with a bite",),
    "sad face": ("face with a frown",),
    "smiling face": ("face with a smile",),
    "tent with a flag": ("tent with a flag on top",),
    "barred window": ("window with bars",),
}
