"""IVLP: prompts in both towers, learned independently (the ablation of MaPLe, and the base of PromptSRC)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP
from .capt.bases.context import class_tokens
from .capt.run.record import RunRecordMixin
from .clip_trainer import VisualPromptTrainer
from .deep_prompts import (
    BlockPromptedClassifier,
    add_text_prompts,
    add_visual_prompts,
    block_prompts,
    need_vit,
    prompt_depth,
)
from .prompted_classifier import ContextLearner, initial_context

if TYPE_CHECKING:
    from clip.model import VisionTransformer

__all__ = ["IVLP", "CustomCLIP", "VLPromptLearner", "extend_cfg", "prompts_node"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.IVLP."""
    cfg.TRAINER.IVLP = prompts_node(num_tokens=2)


def prompts_node(num_tokens: int) -> CfgNode:
    """The keys of independent prompts in both towers."""
    keys = {
        "N_CTX_VISION": num_tokens,  # prompt tokens a block of the image tower
        "N_CTX_TEXT": num_tokens,  # prompt tokens a block of the text tower
        "CTX_INIT": "a photo of a",  # words whose first N_CTX_TEXT tokens the context starts from
        "PREC": "fp16",  # fp16, fp32, bf16 or amp
        "PROMPT_DEPTH_VISION": 9,  # blocks with prompts; 0 for none, 1 for shallow ones
        "PROMPT_DEPTH_TEXT": 9,  # blocks with prompts; at least 1
    }
    return CfgNode(keys)


class VLPromptLearner(ContextLearner):
    """The context in front of the class names; all deeper prompts hang on the towers' blocks."""

    ZS_image_encoder: VisionTransformer  # PromptSRC's frozen tower; IVLP has none

    def __init__(self, node: CfgNode, class_names: list[str], clip: PromptedCLIP):
        n_ctx = node.N_CTX_TEXT
        context, words = initial_context(clip, node.CTX_INIT if n_ctx <= 4 else "", n_ctx)
        print("Independent V-L design")
        print(f'Initial text context: "{words}"')
        print(f"Number of context words (tokens) for Language prompting: {n_ctx}")
        print(f"Number of context words (tokens) for Vision prompting: {node.N_CTX_VISION}")
        super().__init__(context, class_tokens(clip, class_names, words, n_ctx))


class CustomCLIP(BlockPromptedClassifier):
    """CLIP with prompts of its own in each block of each tower.

    Args:
        cfg: configuration.
        class_names: C names.
        clip: its towers get the prompts.

    Attributes:
        node: name of the node that is read, IVLP or PROMPTSRC; both have these keys.
    """

    node = "IVLP"

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        super().__init__()
        node = self.node
        visual, transformer, settings = need_vit(clip, node), clip.clip.transformer, cfg.TRAINER[node]
        visual_blocks, text_blocks = len(visual.transformer.resblocks), len(transformer.resblocks)
        depth_vision = prompt_depth(cfg, node, "PROMPT_DEPTH_VISION", visual_blocks, least=0)
        depth_text = prompt_depth(cfg, node, "PROMPT_DEPTH_TEXT", text_blocks)
        self.prompt_learner = VLPromptLearner(settings, class_names, clip)
        add_visual_prompts(visual, settings.N_CTX_VISION, depth_vision)
        add_text_prompts(transformer, settings.N_CTX_TEXT, depth_text)
        self.take_towers(clip)

    def encode_texts(self) -> Tensor:
        """Features ``(C, D)`` of the classes, not normalised."""
        learner, deep_prompts = self.prompt_learner, block_prompts(self.text_encoder.transformer)
        return self.text_encoder.of_classes(learner(), learner.eot, deep_prompts, learner.shared)


@TRAINER_REGISTRY.register()
class IVLP(RunRecordMixin, VisualPromptTrainer):
    """Independent vision-language prompting; the checkpoint holds the whole model, as the original's does."""

    node = "IVLP"
    model_class = CustomCLIP
    checkpoint_name = "VLPromptLearner"
