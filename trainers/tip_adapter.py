"""Tip-Adapter: a cache of the shots beside the prompts (Zhang et al., arXiv 2111.03930), as it is and fine-tuned.

Logits s z T^T + ALPHA exp(-BETA (1 - z F^T)) L over cache keys F, the shots' features, and their one-hot labels L.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_optimizer
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from .capt.run.feature_cache import FeatureCache
from .feature_adapters import FeatureAdapter, FeatureAdapterTrainer, adapter_node

__all__ = ["ShotCache", "TipAdapter", "TipAdapterF", "extend_cfg", "fine_tuning_optimizer", "mean_views"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.TIPADAPTER and TRAINER.TIPADAPTERF."""
    keys = {
        "ALPHA": 1.0,  # weight of the cache beside CLIP's logits
        "BETA": 5.5,  # sharpness: how near a shot must be to count
    }
    cfg.TRAINER.TIPADAPTER = adapter_node(**keys)
    cfg.TRAINER.TIPADAPTERF = adapter_node(**keys, EPS=1e-4)  # of AdamW, as published


def mean_views(cache: FeatureCache) -> tuple[Tensor, Tensor]:
    """Keys ``(N, D)``, the normalised mean over each image's augmented views, and labels ``(N,)``.

    Without augmented views the keys are the features of the images as they are.
    """
    views = cache.rows.z.unflatten(0, (len(cache), cache.num_views))
    keys = views[:, 1:] if cache.num_views > 1 else views
    return F.normalize(keys.mean(dim=1), dim=-1), cache.rows.label[:: cache.num_views]


def fine_tuning_optimizer(adapter: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """OPTIM's optimiser with Tip-Adapter-F's EPS: with the usual one the keys' small gradients count as large ones."""
    optimizer = build_optimizer(adapter, cfg.OPTIM)
    for group in optimizer.param_groups:
        if "eps" in group:
            group["eps"] = cfg.TRAINER.TIPADAPTERF.EPS
    return optimizer


class ShotCache(FeatureAdapter):
    """Zero-shot CLIP plus what the shots near an image say; a class without shots gets CLIP's logit alone.

    Args:
        num_shots: N, images in the cache.
        alpha: ALPHA.
        beta: BETA.
        is_trained: whether the keys are parameters to optimise.
    """

    labels: Tensor

    def __init__(
        self,
        classnames: Sequence[str],
        text_features: Tensor,
        logit_scale: Tensor,
        num_shots: int,
        alpha: float,
        beta: float,
        is_trained: bool = False,
    ):
        super().__init__(classnames, text_features, logit_scale)
        self.alpha, self.beta = alpha, beta
        self.keys = nn.Parameter(torch.zeros(num_shots, text_features.shape[1]), requires_grad=is_trained)  # (N, D)
        self.register_buffer("labels", torch.zeros(num_shots, dtype=torch.long))  # (N,) among the trained classes

    @torch.no_grad()
    def fill(self, keys: Tensor, labels: Tensor) -> None:
        """Put the shots' keys ``(N, D)`` and labels ``(N,)`` into the cache."""
        self.keys.copy_(keys)
        self.labels.copy_(labels)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        z = F.normalize(features.float(), dim=-1)
        affinity = (-self.beta * (1 - z @ self.keys.t())).exp()  # (B, N)
        values = (self.labels.unsqueeze(1) == self.rows).float()  # (N, C) one-hot; no row is -1 labelled
        return super().forward(features) + self.alpha * (affinity @ values)


class _TipTrainer(FeatureAdapterTrainer):
    adapter: ShotCache
    checkpoint_name = "shot_cache"
    new_classes = "have no shots in the cache and get zero-shot CLIP's logits"
    is_trained: bool

    def build_adapter(self, classnames: list[str], text_features: Tensor, logit_scale: Tensor) -> ShotCache:
        """An empty cache."""
        node, num_shots = self.cfg.TRAINER[self.node], len(self.dm.dataset.train_x)
        return ShotCache(classnames, text_features, logit_scale, num_shots, node.ALPHA, node.BETA, self.is_trained)

    def start_from(self, cache: FeatureCache) -> None:
        """Fill the cache."""
        self.adapter.fill(*mean_views(cache))


@TRAINER_REGISTRY.register()
class TipAdapter(_TipTrainer):
    """The training-free variant: an epoch is no more than the cache and its checkpoint."""

    node = "TIPADAPTER"
    is_trained = False

    def run_epoch(self) -> None:
        """Nothing is trained."""
        print(f"Cache of {len(self.adapter.keys):,} shots; nothing is trained")


@TRAINER_REGISTRY.register()
class TipAdapterF(_TipTrainer):
    """The fine-tuned variant: the keys are trained."""

    node = "TIPADAPTERF"
    is_trained = True

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW with the published EPS."""
        return fine_tuning_optimizer(self.adapter, self.cfg)
