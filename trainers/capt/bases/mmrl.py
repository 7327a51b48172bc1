"""MMRL (Multi-Modal Representation Learning, CVPR 2025) as a base.

Tokens projected from one shared space are inserted behind the first token of both towers, from some block on. The image
has two features: the class token's, and that of the inserted tokens. On classes that MMRL was trained on it mixes their
logits; on others it trusts the class token alone.

Both are one cosine here: with z = [sqrt(a) f, sqrt(1 - a) r] and T = [sqrt(a) t, sqrt(1 - a) t], normalised as f, r and
t are, z T = a f t + (1 - a) r t. For other classes f takes the place of r, which leaves f t. So T, the sentences about
pairs and the width 2D do not depend on the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from ..backbone.blocks import BlockPrompts
from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from .base_model import BaseModel, BaseSpec, check_width, entry, learner_state, options_of
from .context import plain_name
from .keys import CLIP, WORDS, check_keys
from .prompted import check_backbone

__all__ = ["load_mmrl"]

# The published configuration's; layers are counted from 1, as MMRL counts them.
OPTIONS = {"ALPHA": 0.7, "REP_LAYERS": [6, 7, 8, 9, 10, 11, 12]}
SCALE = 100.0  # MMRL's logit scale, whatever CLIP's is
LEARNER = "representation_learner.compound_rep_tokens"


class MMRL(BaseModel):
    """CLIP with representation tokens in both towers and two features an image.

    Args:
        prompted: the frozen CLIP.
        text: block to ``(n, Dt)``.
        visual: block to ``(n, Dv)``.
        proj_rep: ``(Dv, D)`` of the inserted tokens' mean.
        template: prompt with ``{}`` for the class name.
        options: see OPTIONS.
    """

    proj_rep: Tensor

    def __init__(
        self,
        prompted: PromptedCLIP,
        text: dict[int, Tensor],
        visual: dict[int, Tensor],
        proj_rep: Tensor,
        template: str,
        options: dict[str, Any],
    ):
        super().__init__(prompted)
        self.numbers = sorted(text)
        for number in self.numbers:
            self.register_buffer(f"text_{number}", text[number], persistent=False)
            self.register_buffer(f"visual_{number}", visual[number], persistent=False)
        self.register_buffer("proj_rep", proj_rep, persistent=False)
        self.template, self.options = template, options
        self.mixes = True

    def choose_half(self, classnames: list[str], trained_on: list[str]) -> None:
        """Both features for classes of the training, the class token's alone where there are others."""
        self.mixes = set(classnames) <= set(trained_on)

    @property
    def embed_dim(self) -> int:
        """2D: both features, one behind the other."""
        return 2 * self.prompted.embed_dim

    @property
    def logit_scale(self) -> Tensor:
        """MMRL's own, a scalar."""
        return self.prompted.logit_scale.new_tensor(SCALE)

    def _inserted(self, tower: str) -> BlockPrompts:
        return BlockPrompts({number: getattr(self, f"{tower}_{number}") for number in self.numbers}, inserted=True)

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:
        """``(..., 2D)`` fp32 and normalised, of two ``(..., D)``."""
        alpha = self.options["ALPHA"]
        parts = (alpha**0.5, first), ((1 - alpha) ** 0.5, second)
        return torch.cat([weight * normalize(part.float(), dim=-1) for weight, part in parts], dim=-1)

    def _text_features(self, classnames: list[str]) -> Tensor:
        ids, eot = self.prompted.tokenize_short([self.template.format(plain_name(name)) for name in classnames])
        texts = self.prompted.encode_text(self.prompted.embed(ids), eot, self._inserted("text"))
        return self._mixed(texts, texts)

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Normalised features ``(n, 2D)`` of plain sentences, by the text tower without tokens."""
        texts = super().encode_sentences(sentences)
        return self._mixed(texts, texts)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images; behind the class token stands the mean of the inserted ones."""
        features = self.prompted.encode_image(images, deep_prompts=self._inserted("visual"))
        assert features.cls is not None  # a ResNet is refused when the checkpoint is read
        assert features.inserted is not None
        mean = self.prompted.vit.ln_post(features.inserted).mean(dim=1)  # (B, Dv)
        mixed = self._mixed(features.feature, mean.float() @ self.proj_rep if self.mixes else features.feature)
        return replace(features, feature=mixed, cls=torch.cat([features.cls, mean], dim=-1))

    def project(self, cls: Tensor) -> Tensor:
        """Joint-space feature ``(..., 2D)`` fp32 of ``(..., 2 Dv)``, class token and mean of the inserted tokens."""
        own, mean = cls.chunk(2, dim=-1)
        first = super().project(own)
        return self._mixed(first, mean.float() @ self.proj_rep if self.mixes else first)

    def _fingerprinted(self) -> dict[str, Tensor]:
        names = ["proj_rep", *(f"{tower}_{number}" for number in self.numbers for tower in ("text", "visual"))]
        return {name: getattr(self, name) for name in names}


def load_mmrl(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """MMRL's base model.

    Raises:
        ValueError: the checkpoint does not fit the options or this CLIP.
    """
    options = options_of(spec, OPTIONS)
    layers = options["REP_LAYERS"]
    if not 0 <= options["ALPHA"] <= 1:
        raise ValueError(f"TRAINER.CAPT.BASE.OPTIONS.ALPHA of MMRL must be in [0, 1], got {options['ALPHA']}")
    path, state = learner_state(spec, "MultiModalRepresentationLearner")
    used = rf"{LEARNER}(_r2[tv]proj\.\d+\.(weight|bias))?|image_encoder\.proj_rep"
    check_keys(state, path, spec, WORDS, CLIP, used, "prompt_embeddings")
    check_backbone(prompted, state, path)
    tokens = entry(state, LEARNER, path)

    def projected(tower: str, place: int) -> Tensor:
        weight, bias = (entry(state, f"{LEARNER}_r2{tower}proj.{place}.{part}", path) for part in ("weight", "bias"))
        return linear(tokens, weight, bias)

    num = sum(key.startswith(f"{LEARNER}_r2vproj.") and key.endswith(".weight") for key in state)
    if num != len(layers):
        raise ValueError(
            f'"{path}" holds tokens for {num} layers, TRAINER.CAPT.BASE.OPTIONS.REP_LAYERS of MMRL names {layers}; '
            "give those that it was trained with"
        )
    text, visual = ({layer - 1: projected(t, place) for place, layer in enumerate(layers)} for t in "tv")
    check_width(visual[layers[0] - 1], int(prompted.vit.conv1.weight.shape[0]), f"{LEARNER}_r2vproj", path)
    proj_rep = entry(state, "image_encoder.proj_rep", path)
    return MMRL(prompted, text, visual, proj_rep, spec.template, options)
