"""Where the experts start from: semantic ones from the prompts, the sample expert from CLIP's own network (P)."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import CAPTModel

__all__ = ["start_experts"]


def start_experts(
    model: CAPTModel, difference: Tensor, commonality: Tensor, num_centroids: int, generator: torch.Generator
) -> None:
    """Set the experts' weights before anything is trained; nothing to do where there are none.

    Args:
        model: the model.
        difference: ``(C, C, D)`` prompt features D[t|j].
        commonality: ``(C, C, D)`` prompt features K[t, j].
        num_centroids: K-means centroids of the semantic experts; 0 leaves them at random.
        generator: of K-means.
    """
    mixture = model.refiner.expert.mixture
    if mixture is None:
        return
    for name, features in (("difference", difference), ("commonality", commonality)):
        off_diagonal = ~torch.eye(len(features), dtype=torch.bool, device=features.device)
        if num_centroids and off_diagonal.any():
            mixture.expert(name).start_from_prompts(features[off_diagonal], num_centroids, generator)
    prompted = model.base.prompted
    towers = [prompted.clip.transformer] + ([prompted.vit.transformer] if prompted.is_vit else [])
    if not any(mixture.expert("sample").start_from_mlp(tower.resblocks[-1].mlp) for tower in towers):
        print("Sample expert starts at random: no feed-forward network of this CLIP has the joint space's width")
