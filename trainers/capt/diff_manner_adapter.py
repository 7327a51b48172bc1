"""Diff-Manner Adapter: global attention and local convolution on patch tokens (paper 3.2, Eq. 9, 10, 13).

Shapes: B batch, N = h * h patches, Dv visual width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["DiffMannerAdapter"]


class DiffMannerAdapter(nn.Module):
    """What global context and local detail add to an image's tokens, stronger the more the model is torn.

    The depthwise convolution starts at zero: the confusion feature of an untrained adapter is the image feature.

    Args:
        width: Dv.
        grid: h, patches a side.
        num_heads: heads of the global attention.
        alpha: a of Eq. 13, > 0.
        gamma: exponent of Eq. 13, >= 0.
    """

    def __init__(self, width: int, grid: int, num_heads: int, alpha: float = 5.0, gamma: float = 0.5):
        super().__init__()
        self.grid = grid
        self.alpha = alpha
        self.gamma = gamma
        self.ln_query = nn.LayerNorm(width)
        self.ln_tokens = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.convolution = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        nn.init.zeros_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)

    @torch.no_grad()
    def start_from(self, block: nn.Module) -> None:
        """Let the global attention start as a CLIP block's own, layer norm included (D)."""
        for norm in (self.ln_query, self.ln_tokens):
            norm.weight.copy_(block.ln_1.weight)
            norm.bias.copy_(block.ln_1.bias)
        self.attention.in_proj_weight.copy_(block.attn.in_proj_weight)
        self.attention.in_proj_bias.copy_(block.attn.in_proj_bias)
        self.attention.out_proj.weight.copy_(block.attn.out_proj.weight)
        self.attention.out_proj.bias.copy_(block.attn.out_proj.bias)

    def forward(self, cls: Tensor, tokens: Tensor, intensity: Tensor) -> Tensor:
        """The class token with the pooled change of the patch tokens added.

        Args:
            cls: ``(B, Dv)`` class token x_cls.
            tokens: ``(B, N, Dv)`` patch tokens X.
            intensity: ``(B,)`` confusion intensity c in [0, 1].

        Returns:
            ``(B, Dv)`` fp32, x_cls + pool(X' - X).
        """
        cls, tokens = cls.float(), tokens.float()
        query = self.ln_query(cls).unsqueeze(1)  # (B, 1, Dv)
        context = self.ln_tokens(tokens)
        global_feature, _ = self.attention(query, context, context, need_weights=False)  # (B, 1, Dv), Eq. 9
        change = self._convolve(tokens + global_feature)  # DWConv(X + G), Eq. 10
        return cls + self.scale(intensity).unsqueeze(1) * change.mean(dim=1)

    def scale(self, intensity: Tensor) -> Tensor:
        """alpha = a * c^gamma (Eq. 13), ``(B,)``."""
        return self.alpha * intensity.float().pow(self.gamma)

    def _convolve(self, tokens: Tensor) -> Tensor:
        batch, num_patches, width = tokens.shape
        x = tokens.transpose(1, 2).reshape(batch, width, self.grid, self.grid)
        return self.convolution(x).reshape(batch, width, num_patches).transpose(1, 2)  # (B, N, Dv)
