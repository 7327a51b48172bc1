"""A causal tower on texts that begin alike: what they share is computed once, and of each text only the rest.

No token sees what stands behind it. So the start token, a context that all classes share and the words behind it are
the same in every text at every block; their keys and values are computed for one text and read by all.

Shapes: G groups that share a beginning, C texts a group, p shared tokens, r others, D width, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from .blocks import BlockPrompts, masks_for

if TYPE_CHECKING:
    from clip.model import ResidualAttentionBlock, Transformer

__all__ = ["can_share", "is_plain", "pays", "run_sharing"]

# Tokens; below, the further products cost more than they spare, and on a GPU, which is told of each, their number does
# (benchmarks/shared_beginnings.py, on an H100, where 17,000 tokens in half precision did not pay yet).
LEAST_SAVED, LEAST_SAVED_ON_GPU, LEAST_SAVED_IN_HALF = 40, 4_000, 20_000


def pays(num_saved: int, x: Tensor) -> bool:
    """Whether so many tokens less of ``x`` are worth computing the shared ones and the others apart."""
    if x.device.type == "cpu":
        return num_saved >= LEAST_SAVED
    return num_saved >= (LEAST_SAVED_ON_GPU if x.dtype == torch.float32 else LEAST_SAVED_IN_HALF)


def can_share(transformer: Transformer, prompts: BlockPrompts, shared: int, first: int) -> bool:
    """Whether :func:`run_sharing` gives what the tower's own blocks give.

    Args:
        transformer: the tower; a fork's blocks may compute anything, and are tried on a few numbers once.
        prompts: of its blocks; they must lie in the shared part and be the same for all texts.
        shared: p.
        first: position of the first token that prompts replace.
    """
    behind = first if prompts.behind is None else prompts.behind
    is_inside = all(prompt.dim() == 2 and behind + len(prompt) <= shared for prompt in prompts.at.values())
    if shared < 1 or prompts.inserted or not is_inside or _is_watched(transformer):
        return False
    return is_plain(transformer)


def is_plain(transformer: Transformer) -> bool:
    """Whether all blocks compute what OpenAI's do; what was found stays with the tower, and with copies of it.

    To find it the host waits for the device, so whoever is about to share asks before the tower is on one.
    """
    found = vars(transformer).get("is_plain")
    if found is None:
        found = all(_is_plain_block(block) for block in transformer.resblocks)
        vars(transformer)["is_plain"] = found
    return bool(found)


def _is_watched(transformer: Transformer) -> bool:
    """Whether somebody hooked into a block, or put another forward in its place, and waits to be called."""
    parts = transformer.resblocks.modules()
    return any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts)


@torch.no_grad()
def _is_plain_block(block: nn.Module) -> bool:
    """Whether a block is causal and computes what :func:`_sharing_block` does, tried on random numbers."""
    attn = getattr(block, "attn", None)
    if getattr(block, "attn_mask", None) is None or not isinstance(attn, nn.MultiheadAttention):
        return False
    if attn.in_proj_weight is None or attn.bias_k is not None or attn.dropout or attn.batch_first:
        return False
    x = torch.randn(1, 2, 5, attn.embed_dim, generator=torch.Generator().manual_seed(0))
    x[:, :, :2] = x[:, :1, :2]
    x = x.to(attn.in_proj_weight)
    try:
        with masks_for([block], [5]):
            whole = block(x[0].transpose(0, 1)).transpose(0, 1)
        parts = _sharing_block(cast("ResidualAttentionBlock", block), x[:, 0, :2], x[:, :, 2:])
    except (AttributeError, TypeError, ValueError, RuntimeError):  # it takes or holds other things than OpenAI's
        return False
    again = torch.cat([parts[0].unsqueeze(1).expand(-1, 2, -1, -1), parts[1]], dim=2)[0]
    close = 1e-4 if x.dtype == torch.float32 else 5e-2
    return isinstance(whole, Tensor) and torch.allclose(again, whole, rtol=close, atol=close * float(whole.abs().max()))


def run_sharing(transformer: Transformer, shared: Tensor, rest: Tensor, prompts: BlockPrompts, first: int) -> Tensor:
    """What the blocks make of the ``rest``.

    Args:
        transformer: a tower that :func:`can_share`.
        shared: ``(G, p, D)``.
        rest: ``(G, C, r, D)``.
        prompts: of single blocks, in the shared part.
        first: position of the first token that they replace.

    Returns:
        ``(G, C, r, D)``.
    """
    for number, block in enumerate(transformer.resblocks):
        shared = prompts.enter(number, shared.transpose(0, 1), first).transpose(0, 1)
        shared, rest = _sharing_block(block, shared, rest)
    return rest


def _sharing_block(block: ResidualAttentionBlock, shared: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """One block's ``shared`` ``(G, p, D)`` and ``rest`` ``(G, C, r, D)``."""
    queries, keys, values = _heads(block, shared)  # (G, H, p, D/H)
    own_queries, own_keys, own_values = (part.flatten(0, 1) for part in _heads(block, rest))  # (G C, H, r, D/H)
    num_texts, length = rest.shape[1], shared.shape[1]
    seen = torch.ones(rest.shape[2], length + rest.shape[2], dtype=torch.bool, device=rest.device).tril_(length)
    read = scaled_dot_product_attention(
        own_queries,
        torch.cat([keys.repeat_interleave(num_texts, dim=0), own_keys], dim=2),
        torch.cat([values.repeat_interleave(num_texts, dim=0), own_values], dim=2),
        attn_mask=seen,
    )
    rest = _behind_attention(block, rest, read.unflatten(0, rest.shape[:2]))
    read = scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return _behind_attention(block, shared, read), rest


def _heads(block: ResidualAttentionBlock, x: Tensor) -> list[Tensor]:
    """Queries, keys and values ``(..., H, length, D/H)`` of ``x`` ``(..., length, D)``."""
    attn = block.attn
    projected = linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    return [part.unflatten(-1, (attn.num_heads, -1)).transpose(-3, -2) for part in projected.chunk(3, dim=-1)]


def _behind_attention(block: ResidualAttentionBlock, x: Tensor, read: Tensor) -> Tensor:
    """The block's output ``(..., length, D)`` of its input and of what its heads ``(..., H, length, D/H)`` read."""
    x = x + block.attn.out_proj(read.transpose(-3, -2).flatten(-2))
    return x + block.mlp(block.ln_2(x))
