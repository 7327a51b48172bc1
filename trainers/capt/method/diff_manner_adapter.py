"""Diff-Manner Adapter: global attention and local convolution on patch tokens (paper 3.2, Eq. 9, 10, 13).

Every query and every representative passes it in every step, so three identities are used that leave the result as it
is: with a single query, attention needs no projected keys and values, only the projected query and the attended token;
what the layer norm in front of them learns can be applied to these two, so that no gradient passes the tokens; and the
mean of a convolution's output follows from nine window sums of its input. None touches N x Dv x Dv products.

Shapes: B batch, N = h * h patches, Dv visual width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

if TYPE_CHECKING:
    from clip.model import ResidualAttentionBlock

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
        for parameter in self.convolution.parameters():
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def start_from(self, block: ResidualAttentionBlock) -> None:
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
            cls: ``(B, Dv)`` class token x_cls; what a base of several features puts behind it stays as it is.
            tokens: ``(B, N, Dv)`` patch tokens X.
            intensity: ``(B,)`` confusion intensity c in [0, 1].

        Returns:
            ``(B, Dv)`` fp32, x_cls + pool(X' - X).
        """
        cls, tokens = cls.float(), tokens.float()
        width = tokens.shape[-1]
        if cls.shape[-1] > width:
            return torch.cat([self(cls[:, :width], tokens, intensity), cls[:, width:]], dim=-1)
        global_feature = attend_once(self.attention, self.ln_query(cls), tokens, self.ln_tokens)  # (B, Dv), Eq. 9
        change = pooled_convolution(self.convolution, tokens, global_feature, self.grid)  # pool(X' - X), Eq. 10
        return cls + self.scale(intensity).unsqueeze(1) * change

    def scale(self, intensity: Tensor) -> Tensor:
        """alpha = a * c^gamma (Eq. 13), ``(B,)``."""
        return self.alpha * intensity.float().pow(self.gamma)


def attend_once(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Attention ``(B, Dv)`` of one query ``(B, Dv)`` a sample over the norm of ``(B, N, Dv)``, keys and values alike.

    The score of a token x is q (W_k x + b_k) = (W_k^T q) x + const, and sum a (W_v x + b_v) = W_v (sum a x) + b_v. Of
    x = g n + c, with n of mean 0 and variance 1, the score is (g W_k^T q) n + const, and sum a x = g sum a n + c.
    """
    width, num_heads = attention.embed_dim, attention.num_heads
    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    b_q, _, b_v = attention.in_proj_bias.chunk(3)  # a key bias moves all scores of a query alike
    q = linear(query, w_q, b_q).unflatten(-1, (num_heads, -1)) * (width // num_heads) ** -0.5  # (B, H, Dh)
    looked_for = torch.einsum("bhd,hdw->bhw", q, w_k.unflatten(0, (num_heads, -1))) * norm.weight  # (B, H, Dv)
    standard = layer_norm(tokens, norm.normalized_shape, eps=norm.eps)  # n
    weight = (looked_for @ standard.transpose(1, 2)).softmax(dim=-1)  # (B, H, N)
    attended = weight @ standard * norm.weight + norm.bias  # (B, H, Dv)
    value = torch.einsum("bhw,hdw->bhd", attended, w_v.unflatten(0, (num_heads, -1))).flatten(1) + b_v  # (B, Dv)
    return attention.out_proj(value)


def pooled_convolution(convolution: nn.Conv2d, tokens: Tensor, added: Tensor, grid: int) -> Tensor:
    """Mean over all patches ``(B, Dv)`` of the depthwise 3x3 convolution, zero-padded, of tokens + added.

    Tap (i, j) of the kernel meets every patch but those of one border row and one border column, so its share of the
    mean is its weight times the sum of the patches it meets.

    Args:
        convolution: depthwise, kernel 3, padding 1.
        tokens: ``(B, N, Dv)``, row by row of the grid.
        added: ``(B, Dv)``, added to every patch.
        grid: h.
    """
    assert convolution.bias is not None  # torch allows a convolution without one
    met = _met_patches(grid, tokens)  # (9, N)
    windows = met @ tokens + met.sum(dim=1)[:, None] * added.unsqueeze(1)  # (B, 9, Dv)
    return torch.einsum("btd,dt->bd", windows, convolution.weight.flatten(1)) / grid**2 + convolution.bias


def _met_patches(grid: int, like: Tensor) -> Tensor:
    """``(9, N)`` 1 where a tap of the kernel meets a patch, 0 elsewhere; in the dtype and on the device of ``like``."""
    met = like.new_ones(3, 3, grid, grid)
    met[0, :, -1], met[2, :, 0], met[:, 0, :, -1], met[:, 2, :, 0] = 0, 0, 0, 0
    return met.view(9, -1)
