"""What a judge makes of views of training images, before any of them is filed.

Shapes: C classes, M views, D joint width, N patches, Dv width, L width of a layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["JudgedViews", "confusion_intensity"]


def confusion_intensity(probs: Tensor) -> Tensor:
    """c = 2 p_(2) / (p_(1) + p_(2)) in [0, 1] of confidences ``(..., C)``: 0 certain, 1 torn between two (D)."""
    if probs.shape[-1] < 2:
        return torch.zeros_like(probs[..., 0])
    top = probs.topk(2, dim=-1).values
    return 2 * top[..., 1] / (top[..., 0] + top[..., 1])


@dataclass(frozen=True)
class JudgedViews:
    """Views of training images with what a judge made of them.

    Attributes:
        probs: ``(M, C)`` the judge's confidences.
        label: ``(M,)`` ground truth.
        index: ``(M,)`` position of the image in the data source.
        view: ``(M,)`` which view of the image.
        feature: ``(M, D)`` normalised image feature z of the base model.
        cls: ``(M, Dv)`` class token, or what stands in for it; width 0 where there is none.
        layout: ``(M, L)`` fp32, see :mod:`..backbone.layout`; L 0 where images are compared by class tokens alone.
        tokens: ``(M, N, Dv)`` patch tokens; N 0 where none are kept.
    """

    probs: Tensor
    label: Tensor
    index: Tensor
    view: Tensor
    feature: Tensor
    cls: Tensor
    layout: Tensor
    tokens: Tensor

    @staticmethod
    def of(probs: Tensor, label: Tensor, feature: Tensor, **others: Tensor) -> JudgedViews:
        """Of ``probs`` ``(M, C)``, with defaults for what a caller lacks: first views, images in order, no tokens."""
        num = len(probs)
        defaults = {
            "index": torch.arange(num, device=probs.device),
            "view": torch.zeros(num, dtype=torch.long, device=probs.device),
            "cls": probs.new_zeros(num, 0),
            "layout": probs.new_zeros(num, 0),
            "tokens": probs.new_zeros(num, 0, 0),
        }
        return JudgedViews(probs=probs, label=label, feature=feature, **{**defaults, **others})
