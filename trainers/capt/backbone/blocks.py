"""What a base learner may do at single blocks of a tower: prompts that enter there, tokens that are inserted, a branch.

Blocks are counted from 0. Sequences are ``(length, batch, width)``, as CLIP's blocks take them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["BlockPrompts", "Branch", "masks_for", "place_masks"]

Branch = Callable[[int, nn.Module, Tensor], Tensor | None]
"""Number of a block, the block, its input ``(length, batch, width)``: what is added to its output, or None."""


@dataclass(frozen=True)
class BlockPrompts:
    """Prompts of single blocks.

    Attributes:
        at: block to prompts, ``(n, width)`` for all sequences or ``(batch, n, width)``; n is the same at all blocks.
        inserted: the lowest block makes room for them behind the first token, and the later ones replace them there.
            False: at every block they replace tokens that the sequence holds from the start.
        behind: tokens in front of those that are replaced; None for the tower's usual place.
    """

    at: Mapping[int, Tensor]
    inserted: bool = False
    behind: int | None = None

    @classmethod
    def of(cls, prompts: Tensor | BlockPrompts | None) -> BlockPrompts:
        """The family's deep prompts ``(J, n, width)`` or ``(J, batch, n, width)`` stand at blocks 1 to J."""
        if isinstance(prompts, BlockPrompts):
            return prompts
        return cls({} if prompts is None else dict(enumerate(prompts.unbind(0), start=1)))

    @property
    def num_inserted(self) -> int:
        """Tokens by which the sequence grows."""
        return next(iter(self.at.values())).shape[-2] if self.inserted and self.at else 0

    def check(self, num_blocks: int) -> None:
        """Refuse prompts for blocks that a tower of ``num_blocks`` does not have.

        Raises:
            ValueError: names the blocks.
        """
        outside = sorted(number for number in self.at if not 0 <= number < num_blocks)
        if outside:
            raise ValueError(f"prompts for the blocks {outside} of a tower that has the blocks 0 to {num_blocks - 1}")

    def enter(self, number: int, x: Tensor, first: int | None) -> Tensor:
        """The input ``x`` ``(length, batch, width)`` of block ``number`` with its prompts in it.

        Args:
            number: the block.
            x: what the block before it gave.
            first: position of the first prompt that replaces a token; None for "the last n tokens".
        """
        if number not in self.at:
            return x
        prompt = self.at[number].to(x.dtype)
        prompt = prompt.unsqueeze(1).expand(-1, x.shape[1], -1) if prompt.dim() == 2 else prompt.transpose(0, 1)
        if self.inserted:
            rest = 1 if number == min(self.at) else 1 + len(prompt)
            return torch.cat([x[:1], prompt, x[rest:]])
        first = first if self.behind is None else self.behind
        start = x.shape[0] - prompt.shape[0] if first is None else first
        return torch.cat([x[:start], prompt, x[start + prompt.shape[0] :]])

    def lengths(self, length: int, num_blocks: int) -> list[int]:
        """Tokens that each block sees of a sequence of ``length``."""
        grown = min(self.at) if self.num_inserted else num_blocks
        return [length + self.num_inserted * (number >= grown) for number in range(num_blocks)]


def place_masks(blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Put the blocks' causal masks where they are added.

    OpenAI's are plain attributes, which no module takes along to a device, and each block would copy its own in every
    pass, for which the host waits.
    """
    for block in blocks:
        mask = getattr(block, "attn_mask", None)
        if mask is not None and mask.device != device:
            block.attn_mask = mask.to(device)


@contextmanager
def masks_for(blocks: Sequence[nn.Module], lengths: Sequence[int]) -> Iterator[None]:
    """Causal masks of the blocks for other sequences than CLIP's context; every block keeps a mask of its own."""
    whole = [(block, mask) for block in blocks if (mask := getattr(block, "attn_mask", None)) is not None]
    for block, length in zip(blocks, lengths, strict=True):
        mask = getattr(block, "attn_mask", None)
        if mask is not None:
            block.attn_mask = _causal_mask(mask, length)
    try:
        yield
    finally:
        for block, mask in whole:
            block.attn_mask = mask


def _causal_mask(mask: Tensor, length: int) -> Tensor:
    """A causal ``mask`` ``(L, L)`` for ``length`` tokens: cut where they are fewer, built anew where they are more."""
    if length <= len(mask):
        return mask[:length, :length]
    return mask.new_full((length, length), float("-inf")).triu_(1)
