"""CLIP-Adapter: a bottleneck on the image feature ("CLIP-Adapter", Gao et al., arXiv 2110.04544)."""

from __future__ import annotations

from collections.abc import Sequence

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from .feature_adapters import FeatureAdapter, FeatureAdapterTrainer, adapter_node
from .prompted_classifier import clip_logits

__all__ = ["Bottleneck", "CLIPAdapter", "extend_cfg"]

REDUCTION = 4  # the bottleneck's width is D / 4, as published


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.CLIPADAPTER."""
    cfg.TRAINER.CLIPADAPTER = adapter_node(RATIO=0.2)  # share of the adapted feature; the rest is CLIP's own


class Bottleneck(FeatureAdapter):
    """z' = ratio A(z) + (1 - ratio) z, with A = ReLU(W2 ReLU(W1 z)); knows nothing of classes and serves any.

    A has no biases, so it scales with its input: on features of length 1 z' points where it would on CLIP's own.
    """

    def __init__(self, classnames: Sequence[str], text_features: Tensor, logit_scale: Tensor, ratio: float):
        super().__init__(classnames, text_features, logit_scale)
        width = text_features.shape[1]
        self.ratio = ratio
        self.down = nn.Linear(width, width // REDUCTION, bias=False)
        self.up = nn.Linear(width // REDUCTION, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, C)`` of the mixed features."""
        z = F.normalize(features.float(), dim=-1)
        adapted = self.up(self.down(z).relu()).relu()
        return clip_logits(self.logit_scale, self.ratio * adapted + (1 - self.ratio) * z, self.text_features)


@TRAINER_REGISTRY.register()
class CLIPAdapter(FeatureAdapterTrainer):
    """The visual adapter, the variant that the paper's results are of."""

    node = "CLIPADAPTER"
    checkpoint_name = "clip_adapter"
    new_classes = "are told apart by their text features, from adapted image features"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a ratio that is no share."""
        super().check_cfg(cfg)
        if not 0 <= cfg.TRAINER.CLIPADAPTER.RATIO <= 1:
            raise ValueError(f"TRAINER.CLIPADAPTER.RATIO must be from 0 to 1, got {cfg.TRAINER.CLIPADAPTER.RATIO}")

    def build_adapter(self, classnames: list[str], text_features: Tensor, logit_scale: Tensor) -> Bottleneck:
        """A bottleneck at random, beside text features ``(C, D)``."""
        return Bottleneck(classnames, text_features, logit_scale, self.cfg.TRAINER.CLIPADAPTER.RATIO)
