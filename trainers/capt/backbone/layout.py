"""Where in an image what is: the second thing by which images are compared, beside the class token (D).

A class token says what is to be seen, and next to nothing of where. Patch tokens say that: their means over a coarse
grid, each reduced to a few numbers by fixed orthonormal axes, which keep distances about as they are (Johnson and
Lindenstrauss). The axes are those of a cosine transform over the channels, whose order means nothing, so that nothing
has to be fitted or stored.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

__all__ = ["layout_width", "patch_layout"]

CELLS = 4  # a side of the grid, at most
NUMBERS = 32  # a cell, at most


def patch_layout(tokens: Tensor) -> Tensor:
    """``(B, G G R)`` fp32, G cells a side and R numbers a cell, of patch tokens ``(B, N, Dv)`` of a square grid.

    Raises:
        ValueError: N is no square.
    """
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} patch tokens are no square grid; give TRAINER.CAPT.SAM.LAYOUT False")
    grid = tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (B, Dv, h, h)
    cells = adaptive_avg_pool2d(grid.float(), min(CELLS, side)).flatten(2).transpose(1, 2)  # (B, G G, Dv)
    return (cells @ _axes(tokens.shape[2], cells.device)).flatten(1)


def layout_width(side: int | None, width: int | None) -> int:
    """G G R of a tower with ``side`` patches a side of this width; 0 where it has none."""
    return 0 if side is None or width is None else min(CELLS, side) ** 2 * min(NUMBERS, width - 1)


@cache
def _axes(width: int, device: torch.device) -> Tensor:
    """``(Dv, R)`` orthonormal columns, kept where they are read: a copy in every step would make the host wait."""
    channel = torch.arange(width, dtype=torch.double).unsqueeze(1)
    order = torch.arange(1, min(NUMBERS, width - 1) + 1, dtype=torch.double)
    axes = torch.cos(math.pi * (2 * channel + 1) * order / (2 * width)) * math.sqrt(2 / width)
    return axes.float().to(device)
