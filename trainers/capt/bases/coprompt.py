"""CoPrompt (ICLR 2024) as a base: MaPLe's prompts, and an adapter behind each tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, relu

from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from .base_model import BaseModel, BaseSpec, check_width, entry, learner_state, options_of
from .keys import CLIP, WORDS, check_keys
from .prompted import MAPLE, DeepPromptedCLIP, LearnedPrompts, maple_prompts

__all__ = ["load_coprompt"]

SHARES = {"image": 0.1, "text": 0.2}  # of the adapters in the features, as CoPrompt's code fixes them


class Adapter(nn.Module):
    """``(1 - m) f + m relu(U relu(D f))``, in fp32."""

    def __init__(self, down: Tensor, up: Tensor, share: float):
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.share = share

    def forward(self, feature: Tensor) -> Tensor:
        """``(..., D)`` to the same."""
        feature = feature.float()
        return self.share * relu(linear(relu(linear(feature, self.down)), self.up)) + (1 - self.share) * feature


class CoPrompt(DeepPromptedCLIP):
    """CLIP with MaPLe's prompts and adapted features."""

    def __init__(self, prompted: PromptedCLIP, prompts: LearnedPrompts, image: Adapter, text: Adapter):
        super().__init__(prompted, prompts)
        self.adapter_image, self.adapter_text = image, text

    def _text_features(self, classnames: list[str]) -> Tensor:
        return self.adapter_text(super()._text_features(classnames))

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Normalised features ``(n, D)`` of plain sentences, adapted as those of the classes are."""
        return normalize(self.adapter_text(super().encode_sentences(sentences)), dim=-1)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images, adapted."""
        features = super().encode_image(images)
        return replace(features, feature=self.adapter_image(features.feature))

    def project(self, cls: Tensor) -> Tensor:
        """Joint-space feature ``(..., D)`` fp32 of class tokens ``(..., Dv)``, adapted; differentiable."""
        return self.adapter_image(super().project(cls))


def load_coprompt(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """CoPrompt's base model."""
    options_of(spec, {})
    path, state = learner_state(spec, "MultiModalPromptLearner")
    check_keys(state, path, spec, WORDS, CLIP, MAPLE, r"adapter_(image|text)\.fc\.[02]\.weight|model_distill\..*")
    prompts = maple_prompts(prompted, spec, state, path)

    def adapter(name: str) -> Adapter:
        down, up = (entry(state, f"adapter_{name}.fc.{place}.weight", path) for place in (0, 2))
        check_width(down, prompted.embed_dim, f"adapter_{name}.fc.0.weight", path)
        return Adapter(down, up, SHARES[name])

    return CoPrompt(prompted, prompts, adapter("image"), adapter("text"))
