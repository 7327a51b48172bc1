"""Semantic Confusion Miner: with which classes an image is confused, and what is said of each pair (paper 3.2, Eq. 7).

Shapes: B batch, C classes, P mined pairs a query, D joint width, V views kept of all images.

The counts are the one thing here with C^2 numbers: 4 MB for 1,000 classes, of which a query reads one column.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..bank.pair_features import PairFeatures

__all__ = ["MinedPairs", "MinedViews", "PairSet", "SemanticConfusionMiner", "confusion_scores", "mine_pairs"]


@dataclass(frozen=True)
class MinedPairs:
    """The semantic confusion pairs (t, j_1 ... j_P) of B queries.

    Attributes:
        target: ``(B,)`` int64 pseudo-label t.
        partners: ``(B, P)`` int64 classes j, most confusable first; t itself where ``valid`` is False.
        scores: ``(B, P)`` S_j; 0 where not valid.
        valid: ``(B, P)`` bool; False only beyond the C - 1 classes that there are.
    """

    target: Tensor
    partners: Tensor
    scores: Tensor
    valid: Tensor


@dataclass(frozen=True)
class PairSet(MinedPairs):
    """Mined pairs with what is said of them.

    Attributes:
        difference: ``(B, P, D)`` normalised D[t|j], what tells t from j; zero where not valid, or not wanted.
        commonality: ``(B, P, D)`` normalised K[t, j], what they share; zero likewise.
    """

    difference: Tensor
    commonality: Tensor


def confusion_scores(probs: Tensor, target: Tensor, counts: Tensor, symmetric: bool = False) -> Tensor:
    """S_j = (1 + n_j / sum_k n_k) p_j for every class j (Eq. 7), and -inf for t itself.

    n_j = n[j, t] counts the images of class j that were taken for t. Where there are none at all the factor is 1.

    Args:
        probs: ``(B, C)`` confidences p.
        target: ``(B,)`` pseudo-labels t.
        counts: ``(C, C)`` n, rows label, columns pseudo-label, diagonal zero.
        symmetric: also count n[t, j], the images of t taken for j (D).

    Returns:
        ``(B, C)`` fp32.
    """
    n = counts.t()[target].to(probs.dtype)  # (B, C): n[j, t] over j
    if symmetric:
        n = n + counts[target].to(probs.dtype)
    total = n.sum(dim=-1, keepdim=True)
    share = torch.where(total > 0, n / total.clamp_min(torch.finfo(n.dtype).tiny), torch.zeros_like(n))
    scores = (1 + share) * probs
    return scores.scatter(1, target.unsqueeze(1), -torch.inf)


def mine_pairs(probs: Tensor, counts: Tensor, num_pairs: int, symmetric: bool = False) -> MinedPairs:
    """The P classes most confusable with each query's pseudo-label.

    Args:
        probs: ``(B, C)`` confidences of the base model; t is their arg max.
        counts: ``(C, C)``, see :func:`confusion_scores`.
        num_pairs: P; places beyond C - 1 stay empty.
        symmetric: see :func:`confusion_scores`.
    """
    target = probs.argmax(dim=-1)
    scores = confusion_scores(probs, target, counts, symmetric)
    found = min(num_pairs, probs.shape[1] - 1)
    top, partners = scores.topk(found, dim=-1)
    missing = num_pairs - found
    if missing:
        top = nn.functional.pad(top, (0, missing))
        partners = torch.cat([partners, target.unsqueeze(1).expand(-1, missing)], dim=1)
    valid = torch.arange(num_pairs, device=probs.device).expand(len(probs), -1) < found
    return MinedPairs(target, partners, top, valid)


class MinedViews:
    """The pairs of views that come again and again, as they were mined when each was first met.

    All that mining depends on is frozen. So a view that was met has nothing to encode any more, which this knows on the
    host: there is no need to ask the device.

    Args:
        num_views: V.
        num_pairs: P.
        device: of the mined pairs.
    """

    def __init__(self, num_views: int, num_pairs: int, device: torch.device):
        self._is_met = torch.zeros(num_views, dtype=torch.bool)
        shape = num_views, num_pairs
        self._rows = MinedPairs(
            torch.zeros(num_views, dtype=torch.long, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def of(self, views: Tensor) -> MinedPairs | None:
        """The pairs of these views ``(B,)``, given on the CPU; None where one of them is new."""
        if not self._is_met[views].all():
            return None
        views = views.to(self._rows.target.device, non_blocking=True)
        return MinedPairs(**{name: value[views] for name, value in vars(self._rows).items()})

    def keep(self, views: Tensor, mined: MinedPairs) -> None:
        """Remember what was mined of these views ``(B,)``, given on the CPU."""
        self._is_met[views] = True
        views = views.to(self._rows.target.device, non_blocking=True)
        for name, value in vars(self._rows).items():
            value[views] = getattr(mined, name)


class SemanticConfusionMiner(nn.Module):
    """Mines pairs and looks their prompt features up; has no weights.

    Args:
        num_pairs: P.
        symmetric: see :func:`confusion_scores`.
    """

    counts: Tensor  # (C, C)
    features: PairFeatures

    def __init__(self, num_pairs: int, symmetric: bool = False):
        super().__init__()
        self.num_pairs = num_pairs
        self.symmetric = symmetric
        self.register_buffer("counts", torch.zeros(0, 0), persistent=False)

    def set_classes(self, counts: Tensor, features: PairFeatures) -> None:
        """Counts n ``(C, C)`` and the prompt features of the pairs of the classes in use."""
        self.counts, self.features = counts, features

    def mine(self, probs: Tensor) -> MinedPairs:
        """Pairs of base confidences ``(B, C)``."""
        return mine_pairs(probs, self.counts, self.num_pairs, self.symmetric)

    def forward(self, pairs: MinedPairs, wanted: Tensor, is_met: bool = False) -> PairSet:
        """Mined pairs with their features; those not ``wanted`` ``(B, P)`` are not encoded for it, see ``is_met``
        of :meth:`PairFeatures.forward`.
        """
        difference, commonality = self.features(pairs.target, pairs.partners, wanted & pairs.valid, is_met)
        return PairSet(pairs.target, pairs.partners, pairs.scores, pairs.valid, difference, commonality)
