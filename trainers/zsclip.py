"""Zero-shot CLIP: hand-written prompts, nothing is trained (Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from torch import Tensor

from .capt.backbone.precision import usable_precision
from .capt.backbone.prompted_clip import ImageFeatures, PromptedCLIP, load_backbone
from .capt.bases.context import plain_name
from .capt.bases.templates import CUSTOM_TEMPLATES, IMAGENET_TEMPLATES_SELECT
from .capt.run.record import RunRecordMixin
from .prompted_classifier import clip_logits

__all__ = ["ZeroshotCLIP", "ZeroshotCLIP2"]


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(RunRecordMixin, TrainerX):
    """One prompt a class, written for the data set."""

    backbones = "any CLIP or SigLIP: it reads the joint features alone"

    def templates(self) -> list[str]:
        """The prompts, each with ``{}`` for the class name."""
        return [CUSTOM_TEMPLATES.get(self.cfg.DATASET.NAME, "a photo of a {}.")]

    def build_model(self) -> None:
        """Load CLIP and encode the prompts; CLIP runs in fp16 on a GPU as in the family, in fp32 on the CPU."""
        precision = "fp16" if self.device.type == "cuda" else "fp32"
        cfg = self.cfg
        precision = usable_precision(precision, self.device)
        self.clip = load_backbone(cfg, precision).to(self.device)
        self.text_features = self.encode_templates(self.clip, self.templates())

    @torch.no_grad()
    def encode_templates(self, clip: PromptedCLIP, templates: list[str]) -> Tensor:
        """Mean ``(C, D)`` of the normalised features over the templates; not normalised."""
        names = [plain_name(name) for name in self.dm.dataset.classnames]
        mean = torch.zeros(len(names), clip.embed_dim, device=self.device)
        for template in templates:
            prompts = [template.format(name) for name in names]
            mean = mean + clip.text_features(prompts) / len(templates)
        if len(templates) == 1:
            print(f"Prompts: {prompts}")
        else:
            print(f"Prompt ensembling (n={len(templates)})")
        return mean.to(clip.dtype)

    def frozen_encoder(self) -> PromptedCLIP:
        """CLIP as it is."""
        return self.clip

    def inference_from(self, features: ImageFeatures) -> tuple[Tensor, None]:
        """Logits ``(B, C)`` of encoded images."""
        return clip_logits(self.clip.clip.logit_scale, features.feature, self.text_features), None

    def model_inference(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)``."""
        return self.inference_from(self.clip.encode_image(images))[0]

    def train(self) -> None:  # type: ignore[override]  # as in Dassl's SimpleTrainer
        """Refuse: there is nothing to train."""
        raise ValueError(f"{type(self).__name__} trains nothing; add --eval-only")

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Nothing to load."""


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Prompt ensembling: the seven templates chosen for ImageNet, and the data set's own."""

    def templates(self) -> list[str]:
        """Seven for ImageNet, eight for any other data set."""
        own = [] if self.cfg.DATASET.NAME == "ImageNet" else super().templates()
        return [*IMAGENET_TEMPLATES_SELECT, *own]
