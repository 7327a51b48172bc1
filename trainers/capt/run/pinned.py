"""Rows out of large tensors in main memory, on their way to a GPU.

Pinned memory is what a GPU can fetch by itself while the host goes on. All that is gathered lies in it, and not what it
is gathered from, which may be as large as main memory; torch keeps and reuses the place.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gathered"]


def gathered(values: Tensor, row: Tensor, device: torch.device) -> Tensor:
    """``values[row]``, ``(n, ...)`` on the CPU, in pinned memory where it is bound for a GPU.

    Args:
        values: ``(m, ...)`` on the CPU.
        row: ``(n,)`` int64 on the CPU.
        device: where it goes from here.
    """
    if device.type != "cuda":
        return values.index_select(0, row)
    rows = torch.empty(len(row), *values.shape[1:], dtype=values.dtype, pin_memory=True)
    return torch.index_select(values, 0, row, out=rows)
