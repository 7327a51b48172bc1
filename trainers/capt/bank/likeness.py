"""Which images are alike: the cosine of class tokens, less what says nothing of it (D).

Shapes: M entries, C classes, Dv visual width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Likeness"]


class Likeness:
    """Class tokens less the mean of all entries, and less the directions in which a class's own images differ.

    What all images have in common says nothing of which two are alike, and little is said by directions in which images
    of one class differ anyway, such as pose or light. So the tokens are whitened by the scatter within the classes, as
    in linear discriminant analysis, shrunk towards a multiple of the identity since a run has few images.

    Args:
        cls: ``(M, Dv)`` class tokens of the entries.
        label: ``(M,)`` their labels, 0 to C - 1.
        num_classes: C.
        shrinkage: share of the identity in the scatter, in (0, 1]; 1 leaves the plain cosine of centred tokens.
    """

    def __init__(self, cls: Tensor, label: Tensor, num_classes: int, shrinkage: float):
        tokens = cls.float()
        self.center = tokens.sum(dim=0) / max(1, len(tokens))  # (Dv,)
        self.whitening = None  # (Dv, Dv)
        if shrinkage < 1 and tokens.numel():
            self.whitening = _inverse_root(_scatter_within(tokens, label, num_classes), shrinkage)

    def keys(self, cls: Tensor) -> Tensor:
        """Normalised keys ``(..., Dv)`` fp32 of class tokens; their cosine is the likeness."""
        key = cls.float() - self.center
        return normalize(key if self.whitening is None else key @ self.whitening, dim=-1)


def _scatter_within(tokens: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Covariance ``(Dv, Dv)`` of tokens ``(M, Dv)`` around the mean of their class."""
    mean = tokens.new_zeros(num_classes, tokens.shape[1]).index_add_(0, label, tokens)
    mean = (
        mean / tokens.new_zeros(num_classes).index_add_(0, label, torch.ones_like(tokens[:, 0])).clamp_min(1)[:, None]
    )
    rest = tokens - mean[label]
    return rest.t() @ rest / len(tokens)


def _inverse_root(scatter: Tensor, shrinkage: float) -> Tensor:
    """``((1 - shrinkage) S + shrinkage tr(S) / Dv I)^(-1/2)`` of a scatter S; a multiple of I where there is none."""
    size, axes = torch.linalg.eigh(scatter.double())
    shrunk = (1 - shrinkage) * size.clamp_min(0) + shrinkage * size.mean() + 1e-12
    return ((axes * shrunk.rsqrt()) @ axes.t()).float()
