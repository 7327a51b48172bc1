"""PromptKD: a student with visual prompts learns a large teacher's answers on unlabelled images (arXiv 2403.02781).

The teacher is a PromptSRC run on a larger CLIP; its class features are the student's, through a small projection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP, load_backbone
from .capt.bases.distilled import Projection
from .capt.bases.learners import BaseModel, BaseSpec, build_base, class_logits
from .capt.run.record import RunRecordMixin
from .capt.run.shares import whole_batch
from .clip_trainer import VisualPromptTrainer
from .deep_prompts import BlockPromptedClassifier, add_visual_prompts, need_vit, prompt_depth

__all__ = ["PromptKD", "Student", "extend_cfg"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.PROMPTKD and TRAINER.MODAL."""
    cfg.TRAINER.MODAL = "base2novel"  # or cross: what the data sets make of train, val and test for PromptKD
    cfg.TRAINER.PROMPTKD = CfgNode()
    cfg.TRAINER.PROMPTKD.N_CTX_VISION = 4  # prompt tokens a block of the student's image tower
    cfg.TRAINER.PROMPTKD.N_CTX_TEXT = 4  # the teacher's; its checkpoint decides, kept for the family's yamls
    cfg.TRAINER.PROMPTKD.CTX_INIT = "a photo of a"  # the teacher's
    cfg.TRAINER.PROMPTKD.PREC = "fp16"  # fp16, fp32, bf16 or amp
    cfg.TRAINER.PROMPTKD.PROMPT_DEPTH_VISION = 9  # blocks with prompts; 0 for none, 1 for shallow ones
    cfg.TRAINER.PROMPTKD.PROMPT_DEPTH_TEXT = 9  # the teacher's; its checkpoint decides
    cfg.TRAINER.PROMPTKD.PROJECT_LAYER = 2  # layers of the projection; there is no other than 2
    cfg.TRAINER.PROMPTKD.CE_WEIGHT = 0.0  # weight of a cross-entropy with labels; the method uses none
    cfg.TRAINER.PROMPTKD.KD_WEIGHT = 1.0
    cfg.TRAINER.PROMPTKD.TEMPERATURE = 1.0
    cfg.TRAINER.PROMPTKD.TEACHER_NAME = "ViT-L/14"  # the teacher's CLIP: a name or a file
    cfg.TRAINER.PROMPTKD.TEACHER_DIR = ""  # its PromptSRC run folder, or checkpoint; "": teacher_model/<DATASET.NAME>


class Student(BlockPromptedClassifier):
    """The student's image side; its texts are the teacher's, and not in its checkpoint.

    Args:
        cfg: configuration.
        clip: the image tower gets the prompts.
        texts: ``(C, D')`` the teacher's normalised class features.
    """

    texts: Tensor

    def __init__(self, cfg: CfgNode, clip: PromptedCLIP, texts: Tensor):
        super().__init__()
        visual, node = need_vit(clip, "PromptKD"), cfg.TRAINER.PROMPTKD
        depth = prompt_depth(cfg, "PROMPTKD", "PROMPT_DEPTH_VISION", len(visual.transformer.resblocks), least=0)
        add_visual_prompts(visual, node.N_CTX_VISION, depth)
        self.image_encoder = visual
        self.logit_scale = clip.clip.logit_scale
        self.VPT_image_trans = Projection(clip.embed_dim, texts.shape[1])
        self.register_buffer("texts", texts, persistent=False)

    def encode_texts(self) -> Tensor:
        """The teacher's class features ``(C, D')``."""
        return self.texts

    def encode_images(self, images: Tensor) -> Tensor:
        """Features ``(B, D')`` in the teacher's space, not normalised."""
        features, own = whole_batch(super().encode_images(images))  # the projection's batch norm sees all of it
        return self.VPT_image_trans(features)[own]


@TRAINER_REGISTRY.register()
class PromptKD(RunRecordMixin, VisualPromptTrainer):
    """Unsupervised distillation; the checkpoint holds the student's image side, as the original's does.

    With MODAL base2novel the data set gives all classes for training, val is the base classes' test set and test the
    new classes' (see ``datasets/few_shot.py``); the student answers for the half in question.
    """

    node = "PROMPTKD"
    checkpoint_name = "VLPromptLearner"
    model: Student
    transductive = True  # unlabelled training images of the new classes are trained on

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse settings that the original accepts and ignores."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.PROMPTKD
        rules = {
            "TRAINER.MODAL": (cfg.TRAINER.MODAL, ("base2novel", "cross")),
            "TRAINER.PROMPTKD.PROJECT_LAYER": (node.PROJECT_LAYER, (2,)),
            "TRAINER.PROMPTKD.CE_WEIGHT": (node.CE_WEIGHT, (0.0,)),
        }
        for key, (value, allowed) in rules.items():
            if value not in allowed:
                raise ValueError(f"{key} must be {' or '.join(map(str, allowed))}, got {value!r}")

    def build_custom_clip(self, clip: PromptedCLIP, class_names: list[str]) -> Student:
        """The student, and its frozen teacher beside it."""
        need_vit(clip, "PromptKD")
        self.teacher = self._load_teacher(class_names)
        self.tested = slice(None)
        return Student(self.cfg, clip, self.teacher.text_features)

    def _load_teacher(self, class_names: list[str]) -> BaseModel:
        node = self.cfg.TRAINER.PROMPTKD
        directory = node.TEACHER_DIR or os.path.join("teacher_model", self.cfg.DATASET.NAME)
        clip = load_backbone(self.cfg, self.precision, node.TEACHER_NAME).to(self.device)
        need_vit(clip, "PromptKD's teacher")
        try:
            teacher = build_base(clip, BaseSpec("PromptSRC", directory, context_words=node.CTX_INIT)).to(self.device)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; TRAINER.PROMPTKD.TEACHER_DIR must name the run of a PromptSRC teacher on {node.TEACHER_NAME}"
            ) from error
        teacher.set_classes(class_names)
        print(f"Teacher: PromptSRC on {node.TEACHER_NAME} from {directory}")
        return teacher

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits ``(B, C)`` fp32."""
        features = F.normalize(self.teacher.encode_image(images).feature.float(), dim=-1)
        return class_logits(features, self.teacher.text_features, self.teacher.logit_scale)

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Kullback-Leibler divergence from the teacher, a mean over images and classes; labels are not used.

        Args:
            images: ``(B, 3, H, W)``.
            labels: ``(B,)``.
        """
        node = self.cfg.TRAINER.PROMPTKD
        t = node.TEMPERATURE
        log_p = (self.model(images) / t).log_softmax(dim=-1)
        log_q = (self.teacher_logits(images) / t).log_softmax(dim=-1)
        loss = F.kl_div(log_p, log_q, reduction="sum", log_target=True) * t**2 / log_p.numel()
        return node.KD_WEIGHT * loss, {}

    # Testing

    def tested_classnames(self) -> list[str]:
        """Names of the half that is being tested."""
        return list(self.dm.dataset.classnames)[self.tested]

    def model_inference(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` for the classes being tested."""
        with torch.no_grad():
            return self.model(images, self.model.texts[self.tested])

    def test(self, split: str | None = None) -> float:
        """Dassl's test; with MODAL base2novel, val asks for the base classes and test for the new ones."""
        with self._testing(split or self.cfg.TEST.SPLIT):
            return super().test(split)

    def _write_record(self, split: str, *args: Any) -> None:
        """Record the test; what base2novel calls val are the base classes' test images."""
        super()._write_record("test" if self.cfg.TRAINER.MODAL == "base2novel" else split, *args)

    @contextmanager
    def _testing(self, split: str) -> Iterator[None]:
        names = self.evaluator._lab2cname
        if self.cfg.TRAINER.MODAL == "base2novel":
            half = -(-len(self.dm.dataset.classnames) // 2)
            is_base = split == "val" and self.val_loader is not None
            self.tested = slice(None, half) if is_base else slice(half, None)
            self.evaluator._lab2cname = dict(enumerate(self.tested_classnames()))
        try:
            yield
        finally:
            self.tested = slice(None)
            self.evaluator._lab2cname = names
