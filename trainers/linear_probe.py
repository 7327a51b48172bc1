"""Linear probe that starts from the prompts: logits s z W^T, W trained on the shots' features."""

from __future__ import annotations

from collections.abc import Sequence

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from yacs.config import CfgNode

from .feature_adapters import FeatureAdapter, FeatureAdapterTrainer, adapter_node
from .prompted_classifier import clip_logits

__all__ = ["LinearHead", "LinearProbe", "extend_cfg"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.LINEARPROBE."""
    cfg.TRAINER.LINEARPROBE = adapter_node()


class LinearHead(FeatureAdapter):
    """One weight vector a class, started at its text feature; classes without one keep the text feature."""

    def __init__(self, classnames: Sequence[str], text_features: Tensor, logit_scale: Tensor):
        super().__init__(classnames, text_features, logit_scale)
        self.weight = nn.Parameter(self.text_features.clone())  # (C, D)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, C)``, with z and W of length 1."""
        is_trained = (self.rows >= 0).unsqueeze(1)
        weight = self.weight[self.rows.clamp_min(0)].where(is_trained, self.text_features)
        return clip_logits(self.logit_scale, features, weight)


@TRAINER_REGISTRY.register()
class LinearProbe(FeatureAdapterTrainer):
    """A linear classifier on CLIP's image features."""

    node = "LINEARPROBE"
    checkpoint_name = "linear_probe"

    def build_adapter(self, classnames: list[str], text_features: Tensor, logit_scale: Tensor) -> LinearHead:
        """Zero-shot CLIP's weights ``(C, D)`` to start from."""
        return LinearHead(classnames, text_features, logit_scale)
