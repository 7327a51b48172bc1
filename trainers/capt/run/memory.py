"""What the cache and the bank of a run will take, before anything is encoded; all of it follows from sizes.

Shapes: n images, V views, M entries at most, N patches, Dv visual width, D joint width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..backbone.layout import layout_width
from ..backbone.prompted_clip import PromptedCLIP
from .feature_names import class_token_width, token_bytes

__all__ = ["MemoryPlan", "Place", "entry_bytes", "memory_of", "plan_memory", "row_bytes"]

INT, FLOAT = 8, 4
Place = Literal["cache", "bank", "images", "nowhere"]


def row_bytes(tower: PromptedCLIP) -> int:
    """What one view of an image takes in the cache: tokens, z, label, index and view."""
    return token_bytes(tower) + bare_row_bytes(tower)


def bare_row_bytes(tower: PromptedCLIP) -> int:
    """What a view takes whose tokens nobody reads."""
    return FLOAT * tower.embed_dim + 3 * INT


def entry_bytes(tower: PromptedCLIP) -> int:
    """What an entry takes in the bank, its patch tokens left out: z, look, key, seven integers, three numbers."""
    size = torch.finfo(tower.dtype).bits // 8
    layout = layout_width(tower.grid, tower.width)
    look = (size + FLOAT) * class_token_width(tower) + 2 * FLOAT * layout  # as they are, and as keys
    return FLOAT * tower.embed_dim + look + 7 * INT + 3 * FLOAT


@dataclass(frozen=True)
class MemoryPlan:
    """How a run keeps within CACHE.MAX_GB.

    Attributes:
        wanted_views: V that were asked for.
        cached_views: V that fit.
        token_views: of how many of them, the first ones, the tokens are read, and kept as well.
        view_bytes: of one view of all images, with tokens.
        bare_bytes: of one without.
        bank_bytes: of M entries without patch tokens, and n ``(C, C)``, on the device.
        token_bytes: of the patch tokens of M entries, wherever they are.
        tokens_in: the cache, which holds them already; the bank, which keeps them in main memory as well; the images,
            which are encoded again when an entry is retrieved; or nowhere, since nobody reads them.
    """

    wanted_views: int
    cached_views: int
    token_views: int
    view_bytes: int
    bare_bytes: int
    bank_bytes: int
    token_bytes: int
    tokens_in: Place

    @property
    def needed_bytes(self) -> int:
        """Of all views that were asked for."""
        return self._bytes_of(self.wanted_views)

    @property
    def cache_bytes(self) -> int:
        """Of those that fit, in main memory."""
        return self._bytes_of(self.cached_views)

    def _bytes_of(self, num_views: int) -> int:
        whole = min(num_views, self.token_views)
        return whole * self.view_bytes + (num_views - whole) * self.bare_bytes

    def goes_to_device(self, capacity: int) -> bool:
        """Whether tokens in main memory are copied to a GPU of ``capacity`` bytes, a quarter of it at most."""
        return self.tokens_in in ("cache", "bank") and self.token_bytes <= capacity // 4

    def lines(self, pair_bytes: int, capacity: int | None) -> list[str]:
        """What a run says of it; ``pair_bytes`` is what pairs of classes take, ``capacity`` that of a GPU."""
        copies = self.tokens_in == "bank" if capacity is None else self.goes_to_device(capacity)
        device = self.bank_bytes + pair_bytes + (self.token_bytes if copies else 0)
        too = " and on the GPU" if copies and capacity is not None else ""
        where = {
            "cache": f"in the cache{too}",
            "bank": f"in main memory{too}",
            "images": "encoded again when they are retrieved",
        }
        patches = "without patch tokens, which experts alone read"
        if self.tokens_in != "nowhere":
            patches = f"its patch tokens {_gigabytes(self.token_bytes)} {where[self.tokens_in]}"
        views = f"{self.cached_views} of {self.wanted_views} views"
        return [
            f"Memory: feature cache {_gigabytes(self.cache_bytes)} in main memory ({views}); "
            f"bank at most {_gigabytes(self.bank_bytes)}, {patches}; pairs of classes {_gigabytes(pair_bytes)}",
            f"Memory: at most {_gigabytes(device)} of it on {'the GPU' if capacity is not None else 'the CPU besides'}",
        ]


def plan_memory(
    tower: PromptedCLIP,
    *,
    num_images: int,
    num_classes: int,
    wanted_views: int,
    token_views: int,
    bank_views: int,
    num_bank_images: int | None,
    max_gigabytes: float,
    is_adapted: bool,
) -> MemoryPlan:
    """As many views as fit, and the bank's patch tokens where there is room for them.

    Args:
        tower: whose tokens are kept.
        num_images: n, the run's shots.
        num_classes: C.
        wanted_views: V to cache; 0 for no cache.
        token_views: of how many of them tokens are read.
        bank_views: views of an image that may become entries.
        num_bank_images: images that the bank is built from; None for the run's shots.
        max_gigabytes: what the tokens of cache and bank may take together.
        is_adapted: whether an adapter reads the patch tokens of entries.
    """
    budget = int(max_gigabytes * 2**30)
    view, bare = num_images * row_bytes(tower), num_images * bare_row_bytes(tower)
    whole = min(wanted_views, token_views, max(0, budget) // max(1, view))
    left = max(0, budget - whole * view)
    more = min(wanted_views - whole, left // max(1, bare)) if whole == token_views else 0
    entries = bank_views * (num_images if num_bank_images is None else num_bank_images)
    patches = entries * (token_bytes(tower) - token_bytes(tower) // ((tower.grid or 0) ** 2 + 1))
    in_cache = num_bank_images is None and 0 < bank_views <= whole
    tokens_in: Place = "cache" if in_cache else "bank" if patches <= left - more * bare else "images"
    if not is_adapted:
        patches, tokens_in = 0, "nowhere"
    bank = entries * entry_bytes(tower) + FLOAT * num_classes**2
    return MemoryPlan(wanted_views, whole + more, token_views, view, bare, bank, patches, tokens_in)


def memory_of(device: torch.device) -> int | None:
    """Bytes of a GPU; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GB"
