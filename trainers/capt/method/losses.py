"""Losses of CAPT (paper Eq. 3-6): L = L_ori + lambda L_confuse, and two small regularisers (D).

Shapes: B batch, C classes, P mined pairs, K representatives, D joint width, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..run.shares import mean_of_rows

__all__ = ["balance_loss", "confuse_loss", "keep_loss", "original_loss"]


def original_loss(logits: Tensor, label: Tensor) -> Tensor:
    """L_ori: cross-entropy of logits ``(B, C)`` and labels ``(B,)`` (Eq. 4)."""
    return cross_entropy(logits.float(), label)


def confuse_loss(
    u: Tensor,
    text_features: Tensor,
    label: Tensor,
    rivals: Tensor,
    rival_valid: Tensor,
    representatives: Tensor,
    representative_valid: Tensor,
    logit_scale: Tensor,
) -> Tensor:
    """L_confuse: symmetric InfoNCE between sample confusion features and prompts (Eq. 5, 6).

    Image side: u must be nearer to the text of its label than to the texts of the classes it is confused with, the
    pseudo-label t and the mined j. Text side: the label's text must be nearer to u than to the representatives of the
    same pairs. Rivals of the query's own label are no negatives on either side and must be masked out by the caller.

    Args:
        u: ``(B, D)`` normalised sample confusion features.
        text_features: ``(C, D)`` or ``(B, C, D)`` normalised T.
        label: ``(B,)``.
        rivals: ``(B, P+1)`` int64 classes t, j_1 ... j_P.
        rival_valid: ``(B, P+1)`` bool, False where the rival is the label or an empty place.
        representatives: ``(B, K, D)`` normalised confusion features.
        representative_valid: ``(B, K)`` bool, False where the representative has the query's label or is empty.
        logit_scale: s.

    Returns:
        Scalar, the mean of the two sides.
    """
    scale = logit_scale.float()
    texts = text_features.float()
    row = torch.arange(len(u), device=u.device)
    positive_text = texts[label] if texts.dim() == 2 else texts[row, label]  # (B, D)
    rival_texts = texts[rivals] if texts.dim() == 2 else texts[row.unsqueeze(1), rivals]  # (B, P+1, D)
    positive = scale * (u * positive_text).sum(-1, keepdim=True)  # (B, 1)
    image_side = scale * torch.einsum("bd,bpd->bp", u, rival_texts)
    text_side = scale * torch.einsum("bd,bkd->bk", positive_text, representatives)
    return 0.5 * (_info_nce(positive, image_side, rival_valid) + _info_nce(positive, text_side, representative_valid))


def _info_nce(positive: Tensor, negatives: Tensor, valid: Tensor) -> Tensor:
    """Mean over the batch of -log softmax of the positive ``(B, 1)`` among it and its valid negatives ``(B, n)``."""
    logits = torch.cat([positive, negatives.masked_fill(~valid, -torch.inf)], dim=1)
    return -logits.log_softmax(dim=1)[:, 0].mean()


def balance_loss(gates: Tensor) -> Tensor:
    """Router balance (D): E times the sum over experts of (mean gate)^2; 1 when all are used alike, E when one is.

    Args:
        gates: ``(B, E)`` router probabilities before top-k.
    """
    return gates.shape[-1] * mean_of_rows(gates).pow(2).sum()


def keep_loss(residual: Tensor) -> Tensor:
    """How far the experts move the features: mean of |r|^2 / 2 over residuals ``(B, D)``, about 1 - cos(z', z) (D)."""
    return 0.5 * residual.pow(2).sum(dim=-1).mean()
