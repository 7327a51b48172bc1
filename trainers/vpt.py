"""VPT: prompts in the image tower only ("Visual Prompt Tuning", arXiv 2203.12119, as MaPLe's repository sets it up)."""

from __future__ import annotations

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP
from .capt.bases.context import plain_name
from .capt.run.record import RunRecordMixin
from .clip_trainer import VisualPromptTrainer
from .deep_prompts import BlockPromptedClassifier, add_visual_prompts, need_vit, prompt_depth

__all__ = ["VPT", "extend_cfg"]

TEMPLATE = "a photo of a {}."


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.VPT."""
    cfg.TRAINER.VPT = CfgNode()
    cfg.TRAINER.VPT.N_CTX_VISION = 2  # prompt tokens a block
    cfg.TRAINER.VPT.CTX_INIT = "a photo of a"  # kept for the family's files; the text is fixed to these words
    cfg.TRAINER.VPT.PREC = "fp16"  # fp16, fp32, bf16 or amp
    cfg.TRAINER.VPT.PROMPT_DEPTH_VISION = 1  # blocks with prompts; 1 is shallow


class CustomCLIP(BlockPromptedClassifier):
    """CLIP with prompts in the image tower and fixed texts."""

    text_features: Tensor

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        super().__init__()
        visual = need_vit(clip, "VPT")
        depth = prompt_depth(cfg, "VPT", "PROMPT_DEPTH_VISION", len(visual.transformer.resblocks))
        print("Vision Prompting Design")
        print(f'Texts: "{TEMPLATE}"')
        print(f"Number of context words (tokens) for Vision prompting: {cfg.TRAINER.VPT.N_CTX_VISION}")
        text_features = clip.text_features([TEMPLATE.format(plain_name(name)) for name in class_names])
        self.register_buffer("text_features", text_features, persistent=False)  # (C, D)
        add_visual_prompts(visual, cfg.TRAINER.VPT.N_CTX_VISION, depth)
        self.take_towers(clip)  # the text tower is not used, but part of the family's checkpoint

    def encode_texts(self) -> Tensor:
        """Features ``(C, D)`` of the fixed texts."""
        return self.text_features


@TRAINER_REGISTRY.register()
class VPT(RunRecordMixin, VisualPromptTrainer):
    """Visual prompt tuning; the checkpoint holds the whole model, as the original's does."""

    node = "VPT"
    model_class = CustomCLIP
    checkpoint_name = "prompt_learner"
