"""Where the experts start from: semantic ones from the prompts, the sample expert from CLIP's own network (P)."""

from __future__ import annotations

from collections import Counter

import torch

from ..bank.confusion_bank import ConfusionBank
from ..bases.base_model import class_logits
from .model import CAPTModel

__all__ = ["meet_pairs_of_bank", "start_sample_expert", "start_semantic_experts"]

MOST_ROWS = 20_000  # of K-means; more prompts have no more themes than these
AT_A_TIME = 1024  # entries whose pairs are mined in one go


@torch.no_grad()
def meet_pairs_of_bank(model: CAPTModel, bank: ConfusionBank) -> Counter[str]:
    """Encode ahead the pairs that the images in the bank are torn between, which training will ask for.

    Args:
        model: serving the bank's classes, with this bank. Where its texts depend on the image, those for no image are
            taken.
        bank: of the run.

    Returns:
        How many (pair, side)s came from each source; none where the experts do not read prompts.
    """
    settings, miner = model.settings, model.semantic_miner
    if not (settings.use_sem and settings.use_mgde):
        return Counter()
    targets, partners = [], []
    for z in bank.entries.feature[:-1].split(AT_A_TIME):
        scores = class_logits(model.refiner.systematic(z), model.base.text_features, model.base.logit_scale)
        mined = miner.mine(scores.softmax(dim=-1))
        targets.append(mined.target.unsqueeze(1).expand_as(mined.partners)[mined.valid])
        partners.append(mined.partners[mined.valid])
    if not targets:
        return Counter()
    return miner.features.meet(torch.cat(targets), torch.cat(partners), "Encoding pair prompts")


def start_sample_expert(model: CAPTModel) -> None:
    """Set the sample expert's weights, where there is one and a feed-forward network of CLIP's fits."""
    mixture, prompted = model.refiner.expert.mixture, model.base.prompted
    if mixture is None:
        return
    towers = [prompted.clip.transformer] + ([prompted.vit.transformer] if prompted.is_vit else [])
    if not any(mixture.expert("sample").start_from_mlp(tower.resblocks[-1].mlp) for tower in towers):
        print("Sample expert starts at random: no feed-forward network of this CLIP has the joint space's width")


def start_semantic_experts(model: CAPTModel, num_centroids: int, generator: torch.Generator) -> None:
    """Set the semantic experts' weights by the pairs that were met; nothing to do where there are none.

    Args:
        model: the model.
        num_centroids: K-means centroids; 0 leaves the weights at random.
        generator: of K-means, and of the pairs that it looks at where there are more than 20,000.
    """
    mixture = model.refiner.expert.mixture
    if mixture is None or not num_centroids:
        return
    _, *features = model.semantic_miner.features.known()
    if len(features[0]) > MOST_ROWS:
        some = torch.randperm(len(features[0]), generator=generator)[:MOST_ROWS].sort().values
        features = [value[some.to(value.device)] for value in features]
    for name, value in zip(("difference", "commonality"), features, strict=True):
        mixture.expert(name).start_from_prompts(value, num_centroids, generator)
