"""Patch tokens of a bank's entries that the bank does not hold itself.

Shapes: n entries asked for, N patches, Dv visual width, V views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..run.pinned import gathered

__all__ = ["EncodedTokens", "HostTokens", "TokenSource"]


class TokenSource(Protocol):
    """Where the tokens are."""

    def take(self, place: Tensor, view: Tensor) -> Tensor:
        """Patch tokens ``(n, N, Dv)``, on the device of ``place``, of images ``(n,)`` and views ``(n,)``.

        A place is an image's in the list that the bank was built from; tokens at -1 are zero.
        """


@dataclass(frozen=True)
class HostTokens:
    """In main memory, mostly in the feature cache, which holds them for training anyway.

    A GPU fetches what it needs by way of pinned memory; the host waits for the numbers of the entries alone.

    Attributes:
        tokens: ``(num_images * V, N, Dv)``, image after image.
        num_views: V.
    """

    tokens: Tensor
    num_views: int

    @classmethod
    def room_for(cls, num_images: int, num_views: int, like: Tensor) -> HostTokens:
        """Room for the tokens of all views, each as in ``like`` ``(n, N, Dv)``, taken once and still empty."""
        return cls(torch.empty(num_images * num_views, *like.shape[1:], dtype=like.dtype), num_views)

    def put(self, place: Tensor, view: Tensor, tokens: Tensor) -> None:
        """Keep tokens ``(n, N, Dv)`` of images and views ``(n,)``."""
        self.tokens[(place * self.num_views + view).cpu()] = tokens.cpu()

    def take(self, place: Tensor, view: Tensor) -> Tensor:
        """Tokens ``(n, N, Dv)`` at ``(n,)`` places and views; see :class:`TokenSource`."""
        row = torch.where(place < 0, -1, place * self.num_views + view).to(self.tokens.device)
        found = gathered(self.tokens, row.clamp_min(0), place.device)
        found.index_fill_(0, (row < 0).nonzero().squeeze(1), 0)  # a mask would go through all that was found
        return found.to(place.device, non_blocking=True)


@dataclass(frozen=True)
class EncodedTokens:
    """Nowhere: the images are encoded again. For a bank of more images than memory holds.

    Attributes:
        encode: patch tokens ``(m, N, Dv)`` of (place, view) pairs.
    """

    encode: Callable[[list[tuple[int, int]]], Tensor]

    def take(self, place: Tensor, view: Tensor) -> Tensor:
        """Tokens ``(n, N, Dv)`` at ``(n,)`` places and views; an image that is asked for twice is encoded once."""
        asked = torch.stack([place, view], dim=1)
        different, row = asked.unique(dim=0, return_inverse=True)
        pairs = [(p, v) for p, v in different.tolist()]
        there = [pair for pair in pairs if pair[0] >= 0] or [(0, 0)]
        tokens = self.encode(there).to(place.device)  # sorted: what is nowhere came first
        found = tokens[(row - (len(pairs) - len(there))).clamp_min(0)]
        return torch.where((place < 0)[:, None, None], torch.zeros_like(found), found)
