"""CoCoOp: a context that depends on the image (Zhou et al., "Conditional Prompt Learning ...", arXiv 2203.05557)."""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.nn.functional import normalize
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP, encode_image_with
from .capt.bases.context import class_tokens, encode_texts_per_image, meta_net
from .capt.run.record import RunRecordMixin
from .clip_trainer import ClipTrainer
from .prompted_classifier import CLIPTowers, ContextLearner, clip_logits, initial_context

__all__ = ["CoCoOp", "extend_cfg"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.COCOOP."""
    cfg.TRAINER.COCOOP = CfgNode()
    cfg.TRAINER.COCOOP.N_CTX = 16  # number of context tokens
    cfg.TRAINER.COCOOP.CTX_INIT = ""  # words to start from; their number then replaces N_CTX
    cfg.TRAINER.COCOOP.PREC = "fp16"  # fp16, fp32, bf16 or amp


class PromptLearner(ContextLearner):
    """The context, and the meta-net that shifts it by the image (Sec. 3.2 of the paper)."""

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        words = cfg.TRAINER.COCOOP.CTX_INIT.replace("_", " ")
        n_ctx = len(words.split(" ")) if words else cfg.TRAINER.COCOOP.N_CTX
        context, words = initial_context(clip, words, n_ctx)
        print(f'Initial context: "{words}"')
        print(f"Number of context words (tokens): {n_ctx}")
        super().__init__(context, class_tokens(clip, class_names, words, n_ctx))
        self.meta_net = meta_net(clip.embed_dim, clip.text_width)

    def contexts(self, z: Tensor) -> Tensor:
        """Contexts ``(B, n, Dt)`` for normalised image features ``(B, D)``."""
        return self.ctx + self.meta_net(z.float()).unsqueeze(1)


class CustomCLIP(CLIPTowers):
    """CLIP with prompts for every image and class."""

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, class_names, clip)
        self.take_towers(clip)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, C)`` of images ``(B, 3, H, W)``; the text tower reads B x C prompts."""
        learner = self.prompt_learner
        z = normalize(encode_image_with(self.image_encoder, images).feature, dim=-1)
        text_features = encode_texts_per_image(
            self.text_encoder,
            learner.contexts(z),
            learner.token_prefix,
            learner.token_suffix,
            learner.eot,
            length=learner.length,
            shared=learner.shared,
        )  # (B, C, D)
        return clip_logits(self.logit_scale, z, text_features)


@TRAINER_REGISTRY.register()
class CoCoOp(RunRecordMixin, ClipTrainer):
    """Conditional Context Optimization."""

    node = "COCOOP"
    model_class = CustomCLIP
    checkpoint_name = "prompt_learner"
    saved_module = "prompt_learner"
