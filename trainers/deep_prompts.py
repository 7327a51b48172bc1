"""Prompt tokens inside the towers, one set a block (VPT, IVLP, PromptSRC), and how deep they may go.

The parameters hang on the stock modules under the names of the family's forked CLIP (``image_encoder.VPT`` in front of
the first block, ``...resblocks.3.VPT_shallow`` in front of the fourth), so checkpoints fit both ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from .capt.backbone.prompted_clip import PromptedCLIP, encode_image_with
from .prompted_classifier import PromptedClassifier

if TYPE_CHECKING:
    from clip.model import Transformer, VisionTransformer

__all__ = [
    "TRANSFORMERS_ONLY",
    "BlockPromptedClassifier",
    "add_text_prompts",
    "add_visual_prompts",
    "block_prompts",
    "need_vit",
    "prompt_depth",
]

DEFAULT_DEPTH = 9
TRANSFORMERS_ONLY = "a ViT or a SigLIP: its visual prompts stand between patch tokens, and a ResNet has none"


def _is_vit(visual: object) -> TypeGuard[VisionTransformer]:
    return hasattr(visual, "transformer")


def need_vit(clip: PromptedCLIP, method: str) -> VisionTransformer:
    """The image tower.

    Raises:
        ValueError: it is a ResNet, which has no tokens that prompts could stand between.
    """
    visual = clip.clip.visual
    if not _is_vit(visual):
        raise ValueError(
            f"{method} needs a ViT backbone; set MODEL.BACKBONE.NAME to ViT-B/16, ViT-L/14 or another ViT, "
            f"for {method} serves {TRANSFORMERS_ONLY}"
        )
    return visual


def prompt_depth(cfg: CfgNode, node: str, key: str, num_blocks: int, least: int = 1) -> int:
    """Number of blocks that get prompts of their own, as configured; the default is cut to what a small CLIP has.

    Raises:
        ValueError: below ``least``, or (other than the default) beyond the tower's ``num_blocks``.
    """
    depth = cfg.TRAINER[node][key]
    if depth > num_blocks and depth == DEFAULT_DEPTH:
        print(f"TRAINER.{node}.{key} {depth} is cut to {num_blocks}, the number of blocks of this CLIP")
        return num_blocks
    if not least <= depth <= num_blocks:
        raise ValueError(f"TRAINER.{node}.{key} must be in [{least}, {num_blocks}] for this CLIP, got {depth}")
    return depth


def add_visual_prompts(visual: VisionTransformer, num_tokens: int, depth: int) -> None:
    """Give the image tower ``num_tokens`` prompts in front of each of its first ``depth`` blocks."""
    if depth == 0:
        return
    visual.VPT = _prompt(num_tokens, visual.conv1.out_channels)
    _add_block_prompts(visual.transformer, num_tokens, depth)


def add_text_prompts(transformer: Transformer, num_tokens: int, depth: int) -> None:
    """Give the text tower ``num_tokens`` prompts in front of blocks 1 to ``depth`` - 1; block 0 takes the context."""
    _add_block_prompts(transformer, num_tokens, depth)


def _add_block_prompts(transformer: Transformer, num_tokens: int, depth: int) -> None:
    for block in list(transformer.resblocks)[1:depth]:
        block.VPT_shallow = _prompt(num_tokens, transformer.width)


def _prompt(num_tokens: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(num_tokens, width), std=0.02))


def block_prompts(transformer: Transformer) -> Tensor | None:
    """The prompts ``(J, n, width)`` of blocks 1 to J; None if there are none."""
    prompts: list[Tensor] = [block.VPT_shallow for block in transformer.resblocks if hasattr(block, "VPT_shallow")]
    return torch.stack(prompts) if prompts else None


class BlockPromptedClassifier(PromptedClassifier):
    """A classifier whose image tower carries its prompts on its blocks; it may have none."""

    image_encoder: VisionTransformer

    def encode_images(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``, not normalised."""
        visual = self.image_encoder
        prompts = getattr(visual, "VPT", None)
        return encode_image_with(visual, images, prompts, block_prompts(visual.transformer)).feature
