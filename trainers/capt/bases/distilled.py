"""PromptKD's student as a base: visual prompts, a projection into its teacher's joint space, and the teacher's texts.

The student's checkpoint holds no text tower: its class features are the teacher's, so the teacher's run and its CLIP
(ViT-L/14 in the paper of PromptKD, arXiv 2403.02781) must be there too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..backbone.precision import cast_clip
from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP, load_clip
from .base_model import BaseModel, BaseSpec, check_width, entry, learner_state
from .keys import CLIP, VISUAL, WORDS, check_keys
from .prompted import check_backbone, load_independent, visual_prompts

__all__ = ["Projection", "load_promptkd"]

PREFIX = "VPT_image_trans."


class Projection(nn.Module):
    """Two layers from the student's joint space into the teacher's, under the names of PromptKD's checkpoints.

    The 1x1 convolutions work on features as images of one pixel, which is what the shapes in the checkpoints are for.
    """

    def __init__(self, width: int, teacher_width: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(width, teacher_width, 1),
            nn.BatchNorm2d(teacher_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_width, teacher_width, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, D')``, in fp32."""
        return self.conv1(features.float()[..., None, None]).flatten(1)


class PromptKD(BaseModel):
    """CLIP with the student's visual prompts and projection, and the texts of its teacher."""

    visual: Tensor | None
    visual_deep: Tensor | None

    def __init__(
        self,
        prompted: PromptedCLIP,
        prompts: dict[str, Tensor | None],
        projection: Projection,
        teacher: BaseModel,
    ):
        super().__init__(prompted)
        for name, prompt in prompts.items():
            self.register_buffer(name, prompt, persistent=False)
        self.projection = projection
        self.teacher = teacher
        self.prompt_names = sorted(prompts)

    @property
    def embed_dim(self) -> int:
        """D' of the teacher's joint space, in which z and T meet."""
        return self.teacher.embed_dim

    def _text_features(self, classnames: list[str]) -> Tensor:
        return self.teacher.encode_classes(classnames)

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Normalised features ``(n, D')`` of plain sentences, by the teacher's CLIP."""
        return self.teacher.encode_sentences(sentences)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images in the teacher's space; tokens are the student's own."""
        features = self.prompted.encode_image(images, self.visual, self.visual_deep)
        return ImageFeatures(self.projection(features.feature), features.cls, features.tokens)

    def project(self, cls: Tensor) -> Tensor:
        """Joint-space feature ``(..., D')`` fp32 of class tokens ``(..., Dv)``; differentiable."""
        feature = super().project(cls)
        return self.projection(feature.flatten(0, -2)).unflatten(0, feature.shape[:-1])

    def _fingerprinted(self) -> dict[str, Tensor]:
        own = {name: value for name in self.prompt_names if (value := getattr(self, name)) is not None}
        own |= {f"projection.{name}": value for name, value in self.projection.named_buffers()}
        return own | {f"teacher.{name}": value for name, value in self.teacher._fingerprinted().items()}


def load_promptkd(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """PromptKD's base model.

    Raises:
        ValueError: the spec names no teacher, or student and teacher do not belong together.
    """
    if not spec.teacher_directory:
        raise ValueError(
            "TRAINER.CAPT.BASE.TEACHER_DIR must name the run folder (or checkpoint) of the PromptSRC teacher of the "
            "PromptKD base, got nothing"
        )
    path, state = learner_state(spec, "VLPromptLearner")
    if not any(key.startswith(PREFIX) for key in state):
        raise ValueError(f'"{path}" holds no {PREFIX}* (the projection into the teacher\'s space): not of PromptKD')
    check_keys(state, path, spec, WORDS, CLIP, VISUAL, rf"{re.escape(PREFIX)}.*")
    check_backbone(prompted, state, path)
    first = entry(state, f"{PREFIX}conv1.0.weight", path)  # (D', D, 1, 1)
    projection = Projection(first.shape[1], first.shape[0])
    projection.load_state_dict(
        {
            key: state[PREFIX + key] if key.endswith("num_batches_tracked") else entry(state, PREFIX + key, path)
            for key in projection.state_dict()
        }
    )
    teacher = _load_teacher(prompted, spec)
    check_width(first[..., 0, 0], prompted.embed_dim, f"{PREFIX}conv1.0.weight", path)
    if projection.conv1[0].out_channels != teacher.embed_dim:
        raise ValueError(
            f'"{path}" projects to width {first.shape[0]}, the teacher {spec.teacher_backbone} has '
            f"{teacher.embed_dim}; set TRAINER.CAPT.BASE.TEACHER_NAME to the teacher's CLIP"
        )
    return PromptKD(prompted, visual_prompts(state), projection, teacher)


def _load_teacher(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """The teacher's text side; its image tower is dropped, since the student stands for it."""
    clip = load_clip(spec.teacher_backbone)
    if prompted.dtype != torch.float32:
        cast_clip(clip, {torch.float16: "fp16", torch.bfloat16: "bf16"}[prompted.dtype])
    device = prompted.clip.token_embedding.weight.device
    teacher_clip = PromptedCLIP(clip.to(device))
    teacher = load_independent(
        teacher_clip,
        BaseSpec("PromptSRC", spec.teacher_directory, context_words=spec.context_words),
    )
    del teacher_clip.vit.transformer.resblocks[:]
    return teacher
