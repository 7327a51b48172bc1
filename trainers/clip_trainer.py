"""What all prompt learners here share: loading CLIP, precision, optimiser, training step, checkpoints.

A trainer says what is learned (:meth:`ClipTrainer.build_custom_clip`) and by which loss
(:meth:`ClipTrainer.compute_loss`).
"""

from __future__ import annotations

import torch
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights
from torch import Tensor, nn
from torch.nn import functional as F
from yacs.config import CfgNode

from .capt.backbone.precision import PRECISIONS, autocast_for, grad_scaler_for, usable_precision
from .capt.backbone.prompted_clip import PromptedCLIP, encode_text_with, load_prompted_clip
from .capt.bases.learners import class_logits
from .checkpoints import checkpoint_path, load_weights

__all__ = ["ClipTrainer", "TextEncoder", "clip_logits", "initial_context"]


class TextEncoder(nn.Module):
    """CLIP's text tower behind the token embedding, under the names that checkpoints of this family use."""

    def __init__(self, clip: PromptedCLIP):
        super().__init__()
        self.transformer = clip.clip.transformer
        self.positional_embedding = clip.clip.positional_embedding
        self.ln_final = clip.clip.ln_final
        self.text_projection = clip.clip.text_projection

    def forward(self, prompts: Tensor, eot: Tensor, deep_prompts: Tensor | None = None) -> Tensor:
        """Features ``(C, D)``, not normalised, of prompts ``(C, L, Dt)`` that end at ``eot`` ``(C,)``."""
        parts = (self.transformer, self.positional_embedding, self.ln_final, self.text_projection)
        return encode_text_with(*parts, prompts, eot, deep_prompts)


def clip_logits(logit_scale: Tensor, image_features: Tensor, text_features: Tensor) -> Tensor:
    """Scaled cosine similarities ``(B, C)`` in fp32.

    Args:
        logit_scale: CLIP's, a logarithm.
        image_features: ``(B, D)``, of any length.
        text_features: ``(C, D)``, or ``(B, C, D)`` where texts depend on the image; of any length.
    """
    z, texts = F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1)
    return class_logits(z, texts, logit_scale.exp())


class PromptedClassifier(nn.Module):
    """CLIP as a classifier with prompts that are the same for every image.

    Attributes:
        logit_scale: CLIP's, a logarithm.
    """

    logit_scale: nn.Parameter

    def encode_texts(self) -> Tensor:
        """Features ``(C, D)`` of the classes, not normalised."""
        raise NotImplementedError

    def encode_images(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of images ``(B, 3, H, W)``, not normalised."""
        raise NotImplementedError

    def forward(self, images: Tensor, text_features: Tensor | None = None) -> Tensor:
        """Logits ``(B, C)``; ``text_features`` spares the text tower where they are known."""
        if text_features is None:
            text_features = self.encode_texts()
        return clip_logits(self.logit_scale, self.encode_images(images), text_features)


@torch.no_grad()
def initial_context(clip: PromptedCLIP, words: str, num_tokens: int, shape: tuple[int, ...] = ()) -> tuple[Tensor, str]:
    """Where learned context tokens start: at the embedding of ``words``, or at random if there are none.

    Args:
        words: underscores are read as spaces; may be empty.
        num_tokens: n, how many tokens are learned.
        shape: leading axes of a random context, e.g. ``(C,)`` for one context a class.

    Returns:
        The context ``(..., n, Dt)`` in fp32, and the words that stand for it in the prompts.

    Raises:
        ValueError: ``words`` has fewer than n tokens.
    """
    if not words:
        context = torch.empty(*shape, num_tokens, clip.text_width)
        return nn.init.normal_(context, std=0.02), " ".join(["X"] * num_tokens)
    words = words.replace("_", " ")
    ids = clip.tokenize([words])
    if num_tokens > int(ids.argmax()) - 1:
        raise ValueError(f'CTX_INIT "{words}" has {int(ids.argmax()) - 1} tokens, fewer than N_CTX {num_tokens}')
    return clip.embed(ids)[0, 1 : 1 + num_tokens].float(), words


class ClipTrainer(TrainerX):
    """Life cycle of a prompt learner on a frozen CLIP.

    Attributes:
        node: name of the method's configuration node, TRAINER.<node>.
        checkpoint_name: folder of the checkpoints in OUTPUT_DIR, fixed by the family.
    """

    node: str
    checkpoint_name: str

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a precision that does not exist."""
        precision = cfg.TRAINER[self.node].PREC
        if precision not in PRECISIONS:
            raise ValueError(f"TRAINER.{self.node}.PREC must be one of {', '.join(PRECISIONS)}, got {precision!r}")

    def build_custom_clip(self, clip: PromptedCLIP, class_names: list[str]) -> nn.Module:
        """The model to train: maps images ``(B, 3, H, W)`` to logits ``(B, C)``."""
        raise NotImplementedError

    def saved_part(self, model: nn.Module) -> nn.Module:
        """The part of the model that is optimised and saved; all of it unless a method says otherwise."""
        return model

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what else to print beside it."""
        return F.cross_entropy(self.model(images), labels), {}

    def build_model(self) -> None:
        """Build the model, freeze CLIP, and register what is trained."""
        cfg = self.cfg
        self.precision = usable_precision(cfg.TRAINER[self.node].PREC, self.device)
        clip = load_prompted_clip(cfg.MODEL.BACKBONE.NAME, cfg.INPUT.SIZE, self.precision)

        print("Building custom CLIP")
        self.model = self.build_custom_clip(clip, self.dm.dataset.classnames)
        self.model.eval()  # what is not registered keeps this mode, e.g. a ResNet's batch norms
        part = self.saved_part(self.model)
        self._print_trained()

        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(part, cfg.MODEL.INIT_WEIGHTS)

        self.model.to(self.device)
        self.optim = build_optimizer(part, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.checkpoint_name, part, self.optim, self.sched)
        self.scaler = grad_scaler_for(self.precision)
        self.test_texts: Tensor | None = None
        self.use_all_gpus()

    def use_all_gpus(self) -> None:
        """Spread a batch over the GPUs if there are several."""
        num_gpus = torch.cuda.device_count()
        if self.device.type == "cuda" and num_gpus > 1:
            print(f"Multiple GPUs detected (n_gpus={num_gpus}), use all of them!")
            self.model = nn.DataParallel(self.model)

    def _print_trained(self) -> None:
        print("Turning off gradients in both the image and the text encoder")
        sizes = {name: p.numel() for name, p in self.model.named_parameters() if p.requires_grad}
        total = sum(p.numel() for p in self.model.parameters())
        print(f"Parameters to be updated: {sorted(sizes)}")
        print(f"# trained params: {sum(sizes.values()):,} of {total:,} ({100 * sum(sizes.values()) / total:.2f}%)")

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        """One optimiser step; the rate changes on an epoch's last batch."""
        self.test_texts = None
        images, labels = self.parse_batch_train(batch)
        with autocast_for(self.precision, self.device):
            loss, also_printed = self.compute_loss(images, labels)
        if self.scaler is None:
            self.model_backward_and_update(loss)
        else:
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.detach(), **also_printed}

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images and labels of a training batch on the device."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def set_model_mode(self, mode: str = "train", names: list[str] | None = None) -> None:
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
        if not directory:
            raise FileNotFoundError(
                f'Model not found at "{self.checkpoint_name}/": no folder is given; '
                f"name the output folder of a {type(self).__name__} run with --model-dir"
            )
        self.test_texts = None
        for name in names:
            path = checkpoint_path(directory, name, epoch)
            self.loaded_epoch = load_weights(self._models[name], path)
            print(f'Loading weights to {name} from "{path}" (epoch = {self.loaded_epoch})')
