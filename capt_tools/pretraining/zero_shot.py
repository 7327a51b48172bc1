"""Zero-shot accuracy of a CLIP, on all classes and on CoOp's base and new halves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .model import encode_images, encode_texts, standardise, tokenize
from .sources import Pictures

if TYPE_CHECKING:
    from clip.model import CLIP

__all__ = ["Accuracy", "evaluate", "image_features", "text_features"]


@dataclass(frozen=True)
class Accuracy:
    """Shares in percent of ``images`` pictures in ``classes`` classes."""

    plain: float
    per_class: float
    classes: int
    images: int


def evaluate(model: CLIP, pictures: Pictures, template: str) -> dict[str, Accuracy]:
    """Zero-shot accuracy by classes that compete: ``all``, ``base`` (first half of the labels, rounded up), ``new``."""
    features = image_features(model, pictures.images)
    texts = text_features(model, [template.format(own[0]) for own in pictures.names])
    num_classes = len(pictures.names)
    half = math.ceil(num_classes / 2)
    subsets = {"all": (0, num_classes), "base": (0, half), "new": (half, num_classes)}
    return {
        name: _accuracy(features, texts, pictures.labels.to(texts.device), *bounds)
        for name, bounds in subsets.items()
        if bounds[1] - bounds[0] > 1
    }


def _accuracy(features: Tensor, texts: Tensor, labels: Tensor, first: int, behind: int) -> Accuracy:
    inside = (labels >= first) & (labels < behind)
    right = (features[inside] @ texts[first:behind].t()).argmax(dim=1) + first == labels[inside]
    per_class = [right[labels[inside] == label].float().mean() for label in labels[inside].unique()]
    plain, mean = 100 * right.float().mean(), 100 * torch.stack(per_class).mean()
    return Accuracy(plain.item(), mean.item(), behind - first, int(inside.sum()))


@torch.no_grad()
def image_features(model: CLIP, images: Tensor, chunk: int = 256) -> Tensor:
    """Normalised features ``(N, D)`` of images as bytes ``(N, 3, S, S)``."""
    device = model.logit_scale.device
    parts = [encode_images(model, standardise(part.to(device).float() / 255)) for part in images.split(chunk)]
    return torch.cat(parts)


@torch.no_grad()
def text_features(model: CLIP, texts: Sequence[str], chunk: int = 256) -> Tensor:
    """Normalised features ``(C, D)`` of sentences."""
    return torch.cat([encode_texts(model, ids.to(model.logit_scale.device)) for ids in tokenize(texts).split(chunk)])
