"""What all prompt learners here share: loading CLIP, precision, optimiser, training step, checkpoints.

A trainer says what is learned (:attr:`ClipTrainer.model_class`) and by which loss
(:meth:`ClipTrainer.compute_loss`).
"""

from __future__ import annotations

from typing import Any

import torch
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from .capt.backbone.precision import PRECISIONS, autocast_for, grad_scaler_for, usable_precision
from .capt.backbone.prompted_clip import PromptedCLIP, load_backbone
from .capt.run.interruption import ResumableMixin
from .capt.run.shares import backward, begin_batch, mean_figures
from .checkpoints import checkpoint_path, load_weights, need_directory
from .deep_prompts import TRANSFORMERS_ONLY
from .prompted_classifier import PromptedClassifier

__all__ = ["ClipTrainer", "VisualPromptTrainer"]


class ClipTrainer(ResumableMixin, TrainerX):
    """Life cycle of a prompt learner on a frozen CLIP.

    Attributes:
        node: name of the method's configuration node, TRAINER.<node>.
        model_class: made of configuration, class names and CLIP unless :meth:`build_custom_clip` says otherwise.
        checkpoint_name: folder of the checkpoints in OUTPUT_DIR, fixed by the family.
        backbones: which backbones it serves, and why not others; docs/BACKBONES.md has the table.
        saved_module: the part of the model that is optimised and saved, as a path of attributes; "" for all of it.
    """

    node: str
    model_class: type[nn.Module]
    checkpoint_name: str
    backbones = "any CLIP or SigLIP: its prompts stand in the text tower, which all of them have"
    saved_module = ""

    optim: torch.optim.Optimizer
    loaded_epoch: int | None

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a precision that does not exist."""
        precision = cfg.TRAINER[self.node].PREC
        if precision not in PRECISIONS:
            raise ValueError(f"TRAINER.{self.node}.PREC must be one of {', '.join(PRECISIONS)}, got {precision!r}")

    def build_custom_clip(self, clip: PromptedCLIP, class_names: list[str]) -> nn.Module:
        """The model to train: maps images ``(B, 3, H, W)`` to logits ``(B, C)``."""
        return self.model_class(self.cfg, class_names, clip)

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a scalar, and what else to print beside it.

        Args:
            images: ``(B, 3, H, W)``.
            labels: ``(B,)``.
        """
        return F.cross_entropy(self.model(images), labels), {}

    def build_model(self) -> None:
        """Build the model, freeze CLIP, and register what is trained."""
        cfg = self.cfg
        self.precision = usable_precision(cfg.TRAINER[self.node].PREC, self.device)
        clip = load_backbone(cfg, self.precision)

        print("Building custom CLIP")
        self.model = self.build_custom_clip(clip, self.dm.dataset.classnames)
        self.model.eval()  # what is not registered keeps this mode, e.g. a ResNet's batch norms
        part = self.model.get_submodule(self.saved_module)
        self._print_trained()

        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(part, cfg.MODEL.INIT_WEIGHTS)

        self.model.to(self.device)
        self.optim = build_optimizer(part, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.checkpoint_name, part, self.optim, self.sched)
        self.scaler = grad_scaler_for(self.precision)
        self.test_texts: Tensor | None = None

    def _print_trained(self) -> None:
        print("Turning off gradients in both the image and the text encoder")
        sizes = {name: p.numel() for name, p in self.model.named_parameters() if p.requires_grad}
        total = sum(p.numel() for p in self.model.parameters())
        print(f"Parameters to be updated: {sorted(sizes)}")
        print(f"# trained params: {sum(sizes.values()):,} of {total:,} ({100 * sum(sizes.values()) / total:.2f}%)")

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One optimiser step; the rate changes on an epoch's last batch. Returns the figures to print, scalars."""
        self.test_texts = None
        images, labels = self.parse_batch_train(batch)
        begin_batch(len(labels))
        with autocast_for(self.precision, self.device):
            loss, also_printed = self.compute_loss(images, labels)
        if self.scaler is None:
            self.model_backward_and_update(loss)
        else:
            self.optim.zero_grad()
            backward(self.scaler.scale(loss), self.optim)
            self.scaler.step(self.optim)
            self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return mean_figures({"loss": loss.detach(), **also_printed})

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, H, W)`` and labels ``(B,)`` of a training batch, on the device."""
        images, labels = (batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))  # pinned memory
        return images, labels

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Switch the registered models; Dassl does so at the start of each epoch and each test."""
        super().set_model_mode(mode, names)
        self.test_texts = None

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)``; the text tower runs once a test where the texts do not depend on the image."""
        if not isinstance(self.model, PromptedClassifier):
            return self.model(images)
        if self.test_texts is None:
            self.test_texts = self.model.encode_texts()
        return self.model(images, self.test_texts)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load checkpoints of ``directory``, the best ones if no epoch is given; class-name embeddings are not loaded.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: the checkpoint does not fit this run.
        """
        names = self.get_model_names()
        if not names:
            return  # zero-shot: nothing was trained
        need_directory(directory, self.checkpoint_name, type(self).__name__)
        self.test_texts = None
        for name in names:
            path = checkpoint_path(directory, name, epoch)
            self.loaded_epoch = load_weights(self._models[name], path)
            print(f'Loading weights to {name} from "{path}" (epoch = {self.loaded_epoch})')


class VisualPromptTrainer(ClipTrainer):
    """A trainer whose prompts stand in the image tower, too."""

    backbones = TRANSFORMERS_ONLY
