"""QuickGELU, without gradients in the memory of what it is given: the same bits in less time.

OpenAI's takes three tensors of four times the width for it, each through all of the memory. Here a piece that fits the
processor's cache goes through all three operations before the next one comes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["QuickGELU", "lighten"]

PIECE = 2**17  # numbers; with what is made of them a megabyte


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), OpenAI's stand-in for GELU; stands behind a layer whose output nobody else reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, ``(..., n)`` to the same; in place where neither gradients nor a graph are kept."""
        is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if torch.is_grad_enabled() or is_traced:
            return x * torch.sigmoid(1.702 * x)
        in_pieces = x.device.type == "cpu" and x.is_contiguous()
        for piece in x.view(-1).split(PIECE) if in_pieces else (x,):
            piece.mul_((1.702 * piece).sigmoid_())
        return x


@torch.no_grad()
def lighten(model: nn.Module, stock: type[nn.Module] | None) -> None:
    """Replace the QuickGELU of a clip package within feed-forward networks, where it computes the same.

    Args:
        model: a CLIP.
        stock: the package's class; None where it has none.
    """
    sample = torch.linspace(-9, 9, 99)
    if stock is None or not torch.equal(stock()(sample), QuickGELU()(sample.clone())):
        return
    for module in model.modules():
        if isinstance(module, nn.Sequential) and type(getattr(module, "gelu", None)) is stock:
            module.gelu = QuickGELU()
