"""CoOp: learn the context of the prompt ("Learning to Prompt for Vision-Language Models", arXiv 2109.01134)."""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from torch import Tensor
from torch.nn import functional as F
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP, encode_image_with
from .capt.bases.context import POSITIONS, class_tokens
from .capt.run.record import RunRecordMixin
from .clip_trainer import ClipTrainer
from .prompted_classifier import ContextLearner, PromptedClassifier, initial_context

__all__ = ["CoOp", "extend_cfg"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.COOP."""
    cfg.TRAINER.COOP = CfgNode()
    cfg.TRAINER.COOP.N_CTX = 16  # number of context tokens
    cfg.TRAINER.COOP.CSC = False  # class-specific context: one a class instead of one for all
    cfg.TRAINER.COOP.CTX_INIT = ""  # words to start from; their number then replaces N_CTX
    cfg.TRAINER.COOP.PREC = "fp16"  # fp16, fp32, bf16 or amp
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"  # of the class name: end, middle or front


class PromptLearner(ContextLearner):
    """The context V_1 ... V_n and the fixed tokens around it (Eq. 2 and 3 of the paper)."""

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        node = cfg.TRAINER.COOP
        words = node.CTX_INIT.replace("_", " ")
        n_ctx = len(words.split(" ")) if words else node.N_CTX
        per_class = node.CSC and not words  # given words start a context for all classes
        if not words:
            print("Initializing class-specific contexts" if per_class else "Initializing a generic context")
        context, words = initial_context(clip, words, n_ctx, (len(class_names),) if per_class else ())
        print(f'Initial context: "{words}"')
        print(f"Number of context words (tokens): {n_ctx}")
        super().__init__(context, class_tokens(clip, class_names, words, n_ctx, node.CLASS_TOKEN_POSITION))


class CustomCLIP(PromptedClassifier):
    """CLIP with learned prompts."""

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, class_names, clip)
        self.take_towers(clip)

    def encode_texts(self) -> Tensor:
        """Features ``(C, D)`` of the classes, not normalised."""
        learner = self.prompt_learner
        return self.text_encoder.of_classes(learner(), learner.eot, shared=learner.shared)

    def encode_images(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``, not normalised."""
        return encode_image_with(self.image_encoder, images).feature


@TRAINER_REGISTRY.register()
class CoOp(RunRecordMixin, ClipTrainer):
    """Context Optimization."""

    node = "COOP"
    model_class = CustomCLIP
    checkpoint_name = "prompt_learner"
    saved_module = "prompt_learner"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse unknown precisions and positions."""
        super().check_cfg(cfg)
        position = cfg.TRAINER.COOP.CLASS_TOKEN_POSITION
        if position not in POSITIONS:
            allowed = ", ".join(POSITIONS)
            raise ValueError(f"TRAINER.COOP.CLASS_TOKEN_POSITION must be one of {allowed}, got {position!r}")

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of images ``(B, 3, H, W)`` with labels ``(B,)``; the batch's accuracy beside it."""
        logits = self.model(images)
        return F.cross_entropy(logits, labels), {"acc": compute_accuracy(logits.detach(), labels)[0]}
