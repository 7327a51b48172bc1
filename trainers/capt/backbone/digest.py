"""Names for weights: equal digests, equal weights. Hashing a ViT-B/16 takes a third of a second, so it is done once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Stamp", "stamp_of", "tower_digest"]

# What changes when a tensor does: where it lies, its dtype, and torch's count of changes in place.
Stamp = tuple[tuple[int, str, int], ...]


def stamp_of(tensors: Iterable[Tensor]) -> Stamp:
    """A stamp of tensors ``(...)`` by which a digest that was computed before is known to be still true."""
    return tuple((t.data_ptr(), str(t.dtype), 0 if t.is_inference() else t._version) for t in tensors)


def tower_digest(tower: nn.Module) -> str:
    """SHA-256 of a tower's weights and buffers in the precision that they are in; remembered until they change."""
    state = sorted(tower.state_dict().items())
    stamp = stamp_of(value for _, value in state)
    known: tuple[Stamp, str] | None = tower.__dict__.get("_digest")
    if known is None or known[0] != stamp:
        digest = hashlib.sha256()
        for name, value in state:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        known = stamp, digest.hexdigest()
        tower.__dict__["_digest"] = known
    return known[1]
