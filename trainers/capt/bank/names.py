"""Class names that look wrong: what a bank's errors say of the names rather than of the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["suspicious_names"]

MOST = 0.5  # more than this share of both classes taken for the other: the names may be swapped
HARDLY = 1 / 16  # at most this share taken for its own class: CLIP may not know the name
LEAST_VIEWS = 4  # fewer say nothing
NUM_NAMED = 5


def suspicious_names(classnames: Sequence[str], counts: Tensor, num_views: Tensor) -> list[str]:
    """A line for every two classes that are taken for one another, and one for all that are never recognised.

    Args:
        classnames: C names.
        counts: ``(C, C)`` n, rows label, columns the class that images were taken for, diagonal zero.
        num_views: ``(C,)`` views of each class that were judged.
    """
    share = counts / num_views.clamp_min(1).unsqueeze(1)  # (C, C)
    told = (num_views >= LEAST_VIEWS).unsqueeze(1)
    swapped = ((share > MOST) & told & (share.t() > MOST) & told.t()).triu(diagonal=1).nonzero().tolist()
    lines = [
        f"{classnames[a]} and {classnames[b]}: names swapped? Most of each are taken for the other" for a, b in swapped
    ]
    in_swap = torch.zeros_like(num_views, dtype=torch.bool)
    in_swap[[c for pair in swapped for c in pair]] = True
    unknown = ((1 - share.sum(dim=1) <= HARDLY) & told.squeeze(1) & ~in_swap).nonzero().squeeze(1).tolist()
    if unknown:
        named = ", ".join(classnames[c] for c in unknown[:NUM_NAMED])
        more = f" and {len(unknown) - NUM_NAMED} more" if len(unknown) > NUM_NAMED else ""
        lines.append(f"{named}{more}: hardly any image is taken for its own class; does this CLIP know the name?")
    return lines
