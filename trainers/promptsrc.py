"""PromptSRC: prompts regulated by the frozen CLIP ("Self-regulating Prompts", arXiv 2307.06948).

Independent prompts in both towers, and three regulators: agreement with frozen features, prompts averaged over training
with Gaussian weights, and text features of many templates.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP, encode_image_with, load_backbone
from .capt.bases.context import plain_name
from .capt.run.record import RunRecordMixin
from .clip_trainer import VisualPromptTrainer
from .deep_prompts import need_vit
from .imagenet_templates import IMAGENET_TEMPLATES
from .independentVL import CustomCLIP as IndependentCLIP
from .independentVL import prompts_node
from .prompted_classifier import clip_logits

__all__ = ["PromptSRC", "extend_cfg", "gaussian_weights"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.PROMPTSRC."""
    cfg.TRAINER.PROMPTSRC = prompts_node(num_tokens=4)
    cfg.TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT = 25
    cfg.TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT = 10
    cfg.TRAINER.PROMPTSRC.GPA_MEAN = 15  # epoch of the highest weight in the average
    cfg.TRAINER.PROMPTSRC.GPA_STD = 1  # in epochs


class CustomCLIP(IndependentCLIP):
    """IVLP's model, and the frozen image tower beside it."""

    node = "PROMPTSRC"

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        visual = need_vit(clip, "PromptSRC")
        # The frozen tower has a name of its own in checkpoints, but shares every weight with the prompted one.
        frozen = copy.deepcopy(visual, memo={id(p): p for p in visual.parameters()})
        super().__init__(cfg, class_names, clip)
        self.prompt_learner.ZS_image_encoder = frozen

    @torch.no_grad()
    def encode_images_frozen(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of CLIP without prompts, not normalised."""
        return encode_image_with(self.prompt_learner.ZS_image_encoder, images).feature


def gaussian_weights(num_epochs: int, mean: float, std: float) -> Tensor:
    """Weight ``(num_epochs,)`` float64 of each epoch's prompts in the average; they sum to 1."""
    epochs = torch.arange(1, num_epochs + 1, dtype=torch.float64)
    return torch.softmax(-0.5 * ((epochs - mean) / std) ** 2, dim=0)


@TRAINER_REGISTRY.register()
class PromptSRC(RunRecordMixin, VisualPromptTrainer):
    """Self-regulating prompts; the checkpoint holds the whole model, as the original's does."""

    node = "PROMPTSRC"
    model_class = CustomCLIP
    checkpoint_name = "VLPromptLearner"
    model: CustomCLIP

    def build_model(self) -> None:
        """Build the model and an empty average."""
        super().build_model()
        node = self.cfg.TRAINER.PROMPTSRC
        self.epoch_weights = gaussian_weights(self.cfg.OPTIM.MAX_EPOCH, node.GPA_MEAN, node.GPA_STD).tolist()
        self.prompt_average: dict[str, Tensor] = {}
        self.averaged_weight = 0.0
        self.averaged_from = 0  # the first epoch in the average
        self.teacher_texts: Tensor | None = None

    @torch.no_grad()
    def encode_teacher_texts(self) -> Tensor:
        """Frozen text features ``(C, D)``: mean over the templates of features that are not normalised, in fp32."""
        print(f"Encoding {len(IMAGENET_TEMPLATES)} templates a class with the frozen CLIP")
        clip = load_backbone(self.cfg, "fp32").to(self.device)
        names = [plain_name(name) for name in self.dm.dataset.classnames]
        mean = torch.zeros(len(names), clip.embed_dim, device=self.device)
        for template in IMAGENET_TEMPLATES:
            ids, end = clip.tokenize_short([template.replace("{}", name) for name in names])
            mean += clip.encode_text(clip.embed(ids), end) / len(IMAGENET_TEMPLATES)
        return mean

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, and agreement with the frozen CLIP in text features, image features and logits.

        Args:
            images: ``(B, 3, H, W)``.
            labels: ``(B,)``.
        """
        assert self.teacher_texts is not None, "forward_backward encodes them"
        node, model = self.cfg.TRAINER.PROMPTSRC, self.model
        image, text = model.encode_images(images).float(), model.encode_texts().float()
        teacher_image, teacher_text = model.encode_images_frozen(images).float(), self.teacher_texts
        logits = clip_logits(model.logit_scale, image, text)
        teacher_logits = clip_logits(model.logit_scale, teacher_image, teacher_text)

        loss_text = F.l1_loss(F.normalize(text, dim=-1), F.normalize(teacher_text, dim=-1))
        loss_image = F.l1_loss(F.normalize(image, dim=-1), F.normalize(teacher_image, dim=-1))
        log_p, log_q = logits.log_softmax(dim=-1), teacher_logits.log_softmax(dim=-1)
        loss_logits = F.kl_div(log_p, log_q, reduction="sum", log_target=True) / logits.numel()
        agreement = node.TEXT_LOSS_WEIGHT * loss_text + node.IMAGE_LOSS_WEIGHT * loss_image + loss_logits
        loss_class = F.cross_entropy(logits, labels)
        self.loss_terms = {
            "cross-entropy": loss_class,
            "agreement of texts": loss_text,
            "agreement of images": loss_image,
            "agreement of logits": loss_logits,
        }
        return loss_class + agreement, {}

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step; the prompts join the average at the end of each epoch. Returns the figures to print, scalars."""
        if self.teacher_texts is None:
            self.teacher_texts = self.encode_teacher_texts()
        summary = super().forward_backward(batch)
        if self.batch_idx + 1 == self.num_batches:
            self._join_average()
        return summary

    def run_state(self) -> dict[str, Any]:
        """The running average of the prompts."""
        average = {"prompts": self.prompt_average, "weight": self.averaged_weight, "from": self.averaged_from}
        return {"average": average, "has_teacher": self.teacher_texts is not None}

    def restore_run_state(self, state: dict[str, Any]) -> None:
        """Take up the average; the teacher's texts are encoded here, where that draws no random number of a step."""
        average = state["average"]
        self.prompt_average = {name: value.to(self.device) for name, value in average["prompts"].items()}
        self.averaged_weight, self.averaged_from = average["weight"], average["from"]
        if state["has_teacher"]:
            self.teacher_texts = self.encode_teacher_texts()

    @torch.no_grad()
    def _join_average(self) -> None:
        """Gaussian-weighted prompt aggregation; the last epoch ends with the average in place of its own prompts."""
        weight = self.epoch_weights[self.epoch]
        if not self.prompt_average:
            self.averaged_from = self.epoch
        prompts = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for name, prompt in prompts.items():
            self.prompt_average[name] = self.prompt_average.get(name, 0) + weight * prompt.double()
        self.averaged_weight += weight
        if self.epoch + 1 < self.max_epoch:
            return
        print("Using GPA model for final inference...")
        if self.averaged_from > 0:
            print(f"The average covers epochs {self.averaged_from + 1} to {self.max_epoch}, since the run was resumed")
        for name, prompt in prompts.items():
            prompt.copy_(self.prompt_average[name] / self.averaged_weight)
