"""CLIP as the prompt learners here see it: learned context tokens, towers under the family's names, logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .capt.backbone.prompted_clip import PromptedCLIP, encode_text_with
from .capt.backbone.shared_prefix import is_plain
from .capt.bases.context import ClassTokens, place_context, shared_length
from .capt.bases.learners import class_logits
from .capt.run.distributed import world
from .capt.run.shares import share_of, whole

if TYPE_CHECKING:
    from clip.model import ModifiedResNet, Transformer, VisionTransformer

__all__ = [
    "CLIPTowers",
    "ContextLearner",
    "PromptedClassifier",
    "TextEncoder",
    "clip_logits",
    "initial_context",
]


class TextEncoder(nn.Module):
    """CLIP's text tower behind the token embedding, under the names that checkpoints of this family use."""

    transformer: Transformer
    positional_embedding: nn.Parameter
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter

    def __init__(self, clip: PromptedCLIP):
        super().__init__()
        self.transformer = clip.clip.transformer
        self.positional_embedding = clip.clip.positional_embedding
        self.ln_final = clip.clip.ln_final
        self.text_projection = clip.clip.text_projection
        is_plain(self.transformer)  # found out here, where nothing is on a device yet

    def forward(
        self, prompts: Tensor, eot: Tensor, deep_prompts: Tensor | None = None, shared: int = 0, groups: int = 1
    ) -> Tensor:
        """Features ``(C, D)``, not normalised, of prompts ``(C, L, Dt)`` that end at ``eot`` ``(C,)``.

        The first ``shared`` tokens are the same in each of the ``groups``, see :func:`encode_text_with`.
        """
        parts = (self.transformer, self.positional_embedding, self.ln_final, self.text_projection)
        return encode_text_with(*parts, prompts, eot, deep_prompts, shared=shared, groups=groups)

    def of_classes(self, prompts: Tensor, eot: Tensor, deep_prompts: Tensor | None = None, shared: int = 0) -> Tensor:
        """As :meth:`forward`, of prompts that are the same on every process: each encodes its share while it trains."""
        if world() == 1 or len(prompts) < world() or not torch.is_grad_enabled():
            return self(prompts, eot, deep_prompts, shared)
        share = share_of(len(prompts))
        return whole(self(prompts[share.rows], eot[share.rows], deep_prompts, shared), share)


def clip_logits(logit_scale: Tensor, image_features: Tensor, text_features: Tensor) -> Tensor:
    """Scaled cosine similarities ``(B, C)`` in fp32.

    Args:
        logit_scale: CLIP's, a logarithm.
        image_features: ``(B, D)``, of any length.
        text_features: ``(C, D)``, or ``(B, C, D)`` where texts depend on the image; of any length.
    """
    z, texts = F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1)
    return class_logits(z, texts, logit_scale.exp())


class CLIPTowers(nn.Module):
    """CLIP's towers and temperature, under the names that checkpoints of this family use.

    Attributes:
        image_encoder: the image tower.
        text_encoder: the text tower.
        logit_scale: CLIP's, a logarithm.
    """

    image_encoder: VisionTransformer | ModifiedResNet
    text_encoder: TextEncoder
    logit_scale: nn.Parameter

    def take_towers(self, clip: PromptedCLIP) -> None:
        """Take them over; called behind the prompts, since the order of a checkpoint's keys follows."""
        self.image_encoder = clip.clip.visual
        self.text_encoder = TextEncoder(clip)
        self.logit_scale = clip.clip.logit_scale


class PromptedClassifier(CLIPTowers):
    """CLIP as a classifier with prompts that are the same for every image."""

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


class ContextLearner(nn.Module):
    """Learned context tokens, and the fixed tokens around them of this run's classes.

    Args:
        context: where the learned tokens start: ``(n, Dt)`` for all classes, or ``(C, n, Dt)``.
        tokens: what stays fixed; saved as in the family, never loaded.

    Attributes:
        ctx: the context, of the same shape.
        token_prefix: ``(C, 1, Dt)`` start tokens.
        token_suffix: ``(C, L-1-n, Dt)`` what stands behind the context.
        order: ``(C, L)``, or None where the class name stands at the end.
        eot: ``(C,)`` positions of the end tokens.
        length: tokens of the longest prompt; what stands behind is not encoded.
        shared: tokens that all prompts begin with; they are encoded once.
    """

    token_prefix: Tensor
    token_suffix: Tensor
    order: Tensor | None
    eot: Tensor

    def __init__(self, context: Tensor, tokens: ClassTokens):
        super().__init__()
        self.ctx = nn.Parameter(context)
        self.register_buffer("token_prefix", tokens.prefix)
        self.register_buffer("token_suffix", tokens.suffix)
        self.register_buffer("order", tokens.order, persistent=False)
        self.register_buffer("eot", tokens.eot, persistent=False)
        self.length = tokens.length
        self.shared = shared_length(tokens, context.shape[-2], per_class=context.dim() > 2)

    def forward(self) -> Tensor:
        """Prompt embeddings ``(C, L, Dt)``."""
        return place_context(self.ctx, self.token_prefix, self.token_suffix, self.order, self.length)


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
        return nn.init.normal_(context, std=0.02), clip.tokenizer.placeholder(num_tokens)
    words = words.replace("_", " ")
    ids = clip.tokenizer.encode(words)
    if num_tokens > len(ids):
        raise ValueError(f'CTX_INIT "{words}" has {len(ids)} tokens, fewer than N_CTX {num_tokens}')
    return clip.embed(torch.tensor([ids[:num_tokens]]))[0].float(), words
