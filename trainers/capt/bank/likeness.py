"""Which images are alike: the cosine of their looks, less what says nothing of it (D).

Shapes: M entries, C classes, W width of a look, which is a class token and a layout (:mod:`..backbone.layout`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Likeness"]


class Likeness:
    """Looks less the mean of all entries, and less the directions in which a class's own images differ.

    What all images have in common says nothing of which two are alike, and little is said by directions in which images
    of one class differ anyway, such as pose or light. So the looks are whitened by the scatter within the classes, as
    in linear discriminant analysis, shrunk towards a multiple of the identity since a run has few images.

    Args:
        look: ``(M, W)`` of the entries.
        label: ``(M,)`` their labels, 0 to C - 1.
        num_classes: C.
        shrinkage: share of the identity in the scatter, in (0, 1]; 1 leaves the plain cosine of centred looks.
    """

    def __init__(self, look: Tensor, label: Tensor, num_classes: int, shrinkage: float):
        looks = look.float()
        self.center = looks.sum(dim=0) / max(1, len(looks))  # (W,)
        self.whitening = None  # (W, W)
        if shrinkage < 1 and looks.numel():
            self.whitening = _inverse_root(_scatter_within(looks, label, num_classes), shrinkage)

    def keys(self, look: Tensor) -> Tensor:
        """Normalised keys ``(..., W)`` fp32 of looks; their cosine is the likeness."""
        key = look.float() - self.center
        return normalize(key if self.whitening is None else key @ self.whitening, dim=-1)


def _scatter_within(looks: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Covariance ``(W, W)`` of looks ``(M, W)`` around the mean of their class."""
    mean = looks.new_zeros(num_classes, looks.shape[1]).index_add_(0, label, looks)
    mean = mean / looks.new_zeros(num_classes).index_add_(0, label, torch.ones_like(looks[:, 0])).clamp_min(1)[:, None]
    rest = looks - mean[label]
    return rest.t() @ rest / len(looks)


def _inverse_root(scatter: Tensor, shrinkage: float) -> Tensor:
    """``((1 - shrinkage) S + shrinkage tr(S) / W I)^(-1/2)`` of a scatter S; a multiple of I where there is none."""
    size, axes = torch.linalg.eigh(scatter.double())
    shrunk = (1 - shrinkage) * size.clamp_min(0) + shrinkage * size.mean() + 1e-12
    return ((axes * shrunk.rsqrt()) @ axes.t()).float()
