"""MaPLe: coupled prompts in both towers (Khattak et al., "Multi-modal Prompt Learning", arXiv 2210.03117)."""

from __future__ import annotations

import copy

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP, encode_image_with
from .capt.bases.context import class_tokens
from .capt.run.record import RunRecordMixin
from .clip_trainer import VisualPromptTrainer
from .deep_prompts import need_vit, prompt_depth
from .prompted_classifier import ContextLearner, PromptedClassifier, initial_context

__all__ = ["MaPLe", "extend_cfg"]


def extend_cfg(cfg: CfgNode) -> None:
    """Add TRAINER.MAPLE."""
    cfg.TRAINER.MAPLE = CfgNode()
    cfg.TRAINER.MAPLE.N_CTX = 2  # prompt tokens a block
    cfg.TRAINER.MAPLE.CTX_INIT = "a photo of a"  # words whose first N_CTX tokens the prompts of block 0 start from
    cfg.TRAINER.MAPLE.PREC = "fp16"  # fp16, fp32, bf16 or amp
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = 9  # blocks with prompts, in both towers; 1 is shallow


class MultiModalPromptLearner(ContextLearner):
    """Language prompts of blocks 0 to J-1, and the coupling functions F that make visual prompts of them."""

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        node, visual = cfg.TRAINER.MAPLE, need_vit(clip, "MaPLe")
        towers = (clip.clip.transformer, visual.transformer)
        depth = prompt_depth(cfg, "MAPLE", "PROMPT_DEPTH", min(len(tower.resblocks) for tower in towers))
        n_ctx = node.N_CTX
        context, words = initial_context(clip, node.CTX_INIT if n_ctx <= 4 else "", n_ctx)
        print("MaPLe design: Multi-modal Prompt Learning")
        print(f'Initial context: "{words}"')
        print(f"Number of MaPLe context words (tokens): {n_ctx}")
        super().__init__(context, class_tokens(clip, class_names, words, n_ctx))
        width = visual.conv1.out_channels  # Dv
        self.proj = nn.Linear(clip.text_width, width)  # F_0
        deeper = [torch.empty(n_ctx, clip.text_width) for _ in range(depth - 1)]
        self.compound_prompts_text = nn.ParameterList([nn.init.normal_(p, std=0.02) for p in deeper])
        coupling = nn.Linear(clip.text_width, width)  # F_1 ... start alike
        self.compound_prompt_projections = nn.ModuleList([copy.deepcopy(coupling) for _ in deeper])

    def language_prompts(self) -> tuple[Tensor, Tensor | None]:
        """Embeddings ``(C, L, Dt)`` and the prompts ``(J-1, n, Dt)`` of the deeper blocks, None if shallow."""
        return self(), _stack(list(self.compound_prompts_text))

    def visual_prompts(self) -> tuple[Tensor, Tensor | None]:
        """Prompts ``(n, Dv)`` and ``(J-1, n, Dv)``, made of the language prompts."""
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        return self.proj(self.ctx), _stack([coupling(prompt) for coupling, prompt in pairs])


def _stack(prompts: list[Tensor]) -> Tensor | None:
    return torch.stack(prompts) if prompts else None


class CustomCLIP(PromptedClassifier):
    """CLIP with coupled prompts in both towers."""

    def __init__(self, cfg: CfgNode, class_names: list[str], clip: PromptedCLIP):
        super().__init__()
        self.prompt_learner = MultiModalPromptLearner(cfg, class_names, clip)
        self.take_towers(clip)

    def encode_texts(self) -> Tensor:
        """Features ``(C, D)`` of the classes, not normalised."""
        learner = self.prompt_learner
        embeddings, deep_prompts = learner.language_prompts()
        return self.text_encoder.of_classes(embeddings, learner.eot, deep_prompts, learner.shared)

    def encode_images(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``, not normalised."""
        prompts, deep_prompts = self.prompt_learner.visual_prompts()
        return encode_image_with(self.image_encoder, images, prompts, deep_prompts).feature


@TRAINER_REGISTRY.register()
class MaPLe(RunRecordMixin, VisualPromptTrainer):
    """Multi-modal Prompt Learning; the checkpoint holds the whole model, as the original's does."""

    node = "MAPLE"
    model_class = CustomCLIP
    checkpoint_name = "MultiModalPromptLearner"
