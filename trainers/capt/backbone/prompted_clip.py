"""A stock CLIP, run with prompts at any depth, giving features *and* patch tokens.

Every repository of the CoOp family forks ``clip/model.py`` to push prompts into its blocks. Here the stock modules are
walked from outside, so an installed ``clip``, a vendored folder and the forks all work, and the prompts are arguments;
of a fork's module that returns more than CLIP's, :mod:`.returned` takes what is meant, or says that it is not certain.
Only the prompts' semantics come from the family: text prompts stand in the embeddings and, at deeper layers, replace
the tokens behind the start token; visual prompts are appended behind the patch tokens (VPT, MaPLe, IVLP). What happens
at single blocks (TCP, MMRL, MMA) is said by :mod:`.blocks`.

Shapes: B batch, C texts, L context length, N patches, D joint width, Dv visual width, Dt text width, n prompt length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from .blocks import BlockPrompts, Branch, masks_for, place_masks
from .load import load_clip
from .precision import cast_clip
from .returned import image_feature, sequence_of
from .shared_prefix import can_share, pays, run_sharing
from .tokenizers import OpenAITokenizer, Tokenizer

if TYPE_CHECKING:
    from clip.model import CLIP, ModifiedResNet, Transformer, VisionTransformer

__all__ = [
    "ImageFeatures",
    "PromptedCLIP",
    "encode_image_with",
    "encode_text_with",
    "load_backbone",
    "load_clip",
    "load_prompted_clip",
    "tokenize",
    "without_padding",
]

OPENAI = OpenAITokenizer()


@dataclass(frozen=True)
class ImageFeatures:
    """What CLIP's image tower gives for a batch; nothing is normalised.

    Attributes:
        feature: ``(B, D)`` joint-space feature, ``proj(ln_post(cls))`` of a transformer.
        cls: ``(B, Dv)`` class token behind the last block, before ``ln_post``. What stands in for it is SigLIP's pooled
            token, and for a ResNet the mean of what its attention pool reads. A base learner that projects more than it
            puts that behind the class token, ``(B, Dv + ...)``.
        tokens: ``(B, N, Dv)`` patch tokens behind the last block, prompt tokens left out; None for a ResNet.
        inserted: ``(B, n, Dv)`` what the last block makes of inserted prompts; None where there are none.
    """

    feature: Tensor
    cls: Tensor | None
    tokens: Tensor | None
    inserted: Tensor | None = None


# --------------------------------------------------------------------------------------------------------------------
# Walking the stock blocks
# --------------------------------------------------------------------------------------------------------------------


def tokenize(texts: Sequence[str], context_length: int = 77, tokenizer: Tokenizer = OPENAI) -> Tensor:
    """Token ids ``(C, L)`` int64; too long a text is cut behind its last token that fits, and counted in the log."""
    return tokenizer(texts, context_length)


def without_padding(ids: Tensor, tokenizer: Tokenizer = OPENAI) -> Tensor:
    """Token ids ``(C, L)`` cut behind the place at which the longest text is read (one host-device sync)."""
    return ids[:, : int(tokenizer.end_of(ids).max()) + 1]


def _run_blocks(
    transformer: Transformer, x: Tensor, prompts: BlockPrompts, first: int | None, branch: Branch | None
) -> Tensor:
    """Blocks on ``x`` (length, batch, width), with the prompts of each in its input.

    Args:
        prompts: see :class:`BlockPrompts`.
        first: position of the first prompt token that replaces another; None for "the last n tokens".
        branch: adds to a block's output.
    """
    for number, block in enumerate(transformer.resblocks):
        x = prompts.enter(number, x, first)
        added = None if branch is None else branch(number, block, x)
        x = sequence_of(block(x), x, f"block {number}")
        x = x if added is None else x + added
    return x


def _at_blocks(deep_prompts: Tensor | BlockPrompts | None, transformer: Transformer) -> BlockPrompts:
    """Prompts by block; a stack of them may be deeper than the tower, as the family's depths are."""
    if isinstance(deep_prompts, BlockPrompts):
        deep_prompts.check(len(transformer.resblocks))
    return BlockPrompts.of(deep_prompts)


def encode_text_with(
    transformer: Transformer,
    positional_embedding: Tensor,
    ln_final: nn.Module,
    text_projection: Tensor,
    embeddings: Tensor,
    eot: Tensor,
    deep_prompts: Tensor | BlockPrompts | None = None,
    branch: Branch | None = None,
    shared: int = 0,
    groups: int = 1,
) -> Tensor:
    """Text features ``(C, D)``, not normalised, of token embeddings ``(C, L, Dt)`` that end at ``eot`` ``(C,)``.

    L may be less than CLIP's context: the tower is causal and the feature is read at ``eot``, so what stands behind the
    longest text changes nothing and need not be there.

    Args:
        deep_prompts: ``(J, n, Dt)`` or ``(J, C, n, Dt)`` replace the tokens behind the start token at blocks 1..J;
            :class:`BlockPrompts` stand at any blocks, or are inserted.
        branch: adds to the output of blocks.
        shared: so many tokens at the beginning are the same in all texts, and are computed once where that pays and the
            blocks are OpenAI's (:mod:`.shared_prefix`); no text ends among them.
        groups: the texts are this many equal parts, one behind the other, and share their beginnings within a part.

    Raises:
        ValueError: :class:`BlockPrompts` of a block that this tower does not have.
    """
    length, blocks = embeddings.shape[1], list(transformer.resblocks)
    place_masks(blocks, embeddings.device)
    prompts = _at_blocks(deep_prompts, transformer)
    x = embeddings + positional_embedding[:length].to(embeddings.dtype)
    first = getattr(transformer, "prompt_start", 1)  # behind the start token, where there is one
    can = shared > 0 and branch is None and can_share(transformer, prompts, shared, first)
    if can and pays((len(x) - groups) * shared, x):
        parts = x.unflatten(0, (groups, -1))
        rest = run_sharing(transformer, parts[:, 0, :shared], parts[:, :, shared:], prompts, first)
        read = rest.flatten(0, 1)[torch.arange(len(x), device=x.device), eot - shared]
        return ln_final(read).to(embeddings.dtype) @ text_projection.to(embeddings.dtype)
    with masks_for(blocks, prompts.lengths(length, len(blocks))):
        x = _run_blocks(transformer, x.transpose(0, 1), prompts, first, branch).transpose(0, 1)
    x = ln_final(x).to(embeddings.dtype)
    return x[torch.arange(len(x), device=x.device), eot + prompts.num_inserted] @ text_projection.to(embeddings.dtype)


def _has_tokens(visual: VisionTransformer | ModifiedResNet) -> TypeGuard[VisionTransformer]:
    """Whether the image tower is a ViT; a ResNet has no tokens to prompt."""
    return hasattr(visual, "transformer")


def encode_image_with(
    visual: VisionTransformer | ModifiedResNet,
    images: Tensor,
    prompts: Tensor | None = None,
    deep_prompts: Tensor | BlockPrompts | None = None,
    branch: Branch | None = None,
) -> ImageFeatures:
    """Features of images ``(B, 3, H, W)`` from CLIP's image tower ``visual``.

    Args:
        prompts: ``(n, Dv)`` or ``(B, n, Dv)``, appended behind the patch tokens before ``ln_pre``.
        deep_prompts: ``(J, n, Dv)``, replacing the last n tokens of blocks 1..J; :class:`BlockPrompts` stand at any
            blocks, or are inserted behind the class token.
        branch: adds to the output of blocks.

    Raises:
        ValueError: visual prompts for a ResNet tower, or :class:`BlockPrompts` of a block that it does not have.
    """
    if not _has_tokens(visual):
        if any(asked is not None for asked in (prompts, deep_prompts, branch)):
            raise ValueError("visual prompts need a ViT; set MODEL.BACKBONE.NAME to one (ViT-B/16, ViT-L/14 ...)")
        return _encode_image_by_resnet(cast("ModifiedResNet", visual), images)
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, N, Dv)
    num_patches = x.shape[1]
    if visual.class_embedding is not None:
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = x + visual.positional_embedding.to(x.dtype)
    if prompts is not None:
        x = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    by_block, pool = _at_blocks(deep_prompts, visual.transformer), getattr(visual, "attn_pool", None)
    if pool is not None and by_block.inserted:
        raise ValueError("inserted prompts stand behind a class token, and a SigLIP has none")
    x = _run_blocks(visual.transformer, x.transpose(0, 1), by_block, first=None, branch=branch).transpose(0, 1)
    first_patch = by_block.num_inserted + (pool is None)
    tokens = x[:, first_patch : first_patch + num_patches]
    cls = x[:, 0] if pool is None else pool(tokens)
    feature = visual.ln_post(cls) @ visual.proj.to(x.dtype)
    return ImageFeatures(feature, cls, tokens, x[:, 1:first_patch] if by_block.inserted else None)


def _encode_image_by_resnet(visual: ModifiedResNet, images: Tensor) -> ImageFeatures:
    """Features of a ResNet, and the mean of what its attention pool reads, seen from outside on its way there."""
    means: list[Tensor] = []
    hook = visual.attnpool.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean(dim=(2, 3))))
    try:
        feature = image_feature(visual, images.to(visual.conv1.weight.dtype))
    finally:
        hook.remove()
    return ImageFeatures(feature, means[0], None)  # of all images, also where a fork is asked again in parts


class PromptedCLIP(nn.Module):
    """A stock CLIP whose towers take prompts; owns no parameter of its own.

    Args:
        clip_model: what :func:`load_clip` returns, or any model with the stock CLIP's attributes.
    """

    def __init__(self, clip_model: CLIP):
        super().__init__()
        self.clip: CLIP = clip_model

    @property
    def tower(self) -> PromptedCLIP:
        """The frozen CLIP whose own features :meth:`encode_image` gives: this one."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the towers' weights; features come in it."""
        return self.clip.visual.conv1.weight.dtype

    @property
    def design(self) -> str:
        """What the weights do not show of this CLIP, heads and activation; empty for OpenAI's own."""
        return repr(sizes) if (sizes := getattr(self.clip, "sizes", None)) is not None else ""

    @property
    def is_vit(self) -> bool:
        """Whether the image tower has patch tokens."""
        return _has_tokens(self.clip.visual)

    @property
    def vit(self) -> VisionTransformer:
        """The image tower of a CLIP that :attr:`is_vit`."""
        return cast("VisionTransformer", self.clip.visual)

    @property
    def input_size(self) -> int:
        """Side of the square input, pixels."""
        return int(self.clip.visual.input_resolution)

    @property
    def width(self) -> int | None:
        """Dv, the width of the visual transformer; None for a ResNet."""
        return int(self.clip.visual.conv1.weight.shape[0]) if self.is_vit else None

    @property
    def grid(self) -> int | None:
        """h, patches a side; None for a ResNet."""
        return self.input_size // int(self.clip.visual.conv1.kernel_size[0]) if self.is_vit else None

    @property
    def text_width(self) -> int:
        """Dt, the width of the text transformer."""
        return int(self.clip.token_embedding.weight.shape[1])

    @property
    def embed_dim(self) -> int:
        """D, the width of the joint space."""
        return int(self.clip.text_projection.shape[1])

    @property
    def context_length(self) -> int:
        """L, 77 for every CLIP of OpenAI's."""
        return int(self.clip.positional_embedding.shape[0])

    @property
    def logit_scale(self) -> Tensor:
        """s = exp(logit_scale), a scalar."""
        return self.clip.logit_scale.exp()

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the texts that this CLIP was trained on; OpenAI's where the model says nothing of it."""
        return getattr(self.clip, "tokenizer", OPENAI)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(C, L)`` on the model's device; see :func:`tokenize`."""
        ids = tokenize(texts, self.context_length, self.tokenizer)
        return ids.to(self.clip.token_embedding.weight.device)

    def tokenize_short(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids ``(C, L')``, without padding that changes no feature, and where each text is read ``(C,)``."""
        ids = without_padding(self.tokenize(texts), self.tokenizer)
        return ids, self.tokenizer.end_of(ids)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings ``(C, L, Dt)``."""
        embedding = self.clip.token_embedding
        return embedding(ids.to(embedding.weight.device)).to(self.dtype)

    def encode_text(
        self,
        embeddings: Tensor,
        eot: Tensor,
        deep_prompts: Tensor | BlockPrompts | None = None,
        branch: Branch | None = None,
        shared: int = 0,
        groups: int = 1,
    ) -> Tensor:
        """Text features ``(C, D)`` of embeddings ``(C, L, Dt)``; see :func:`encode_text_with`."""
        model = self.clip
        return encode_text_with(
            model.transformer,
            model.positional_embedding,
            model.ln_final,
            model.text_projection,
            embeddings.to(self.dtype),
            eot,
            deep_prompts,
            branch,
            shared,
            groups,
        )

    def encode_image(
        self,
        images: Tensor,
        prompts: Tensor | None = None,
        deep_prompts: Tensor | BlockPrompts | None = None,
        branch: Branch | None = None,
    ) -> ImageFeatures:
        """Features of images ``(B, 3, H, W)``; see :func:`encode_image_with`."""
        return encode_image_with(self.clip.visual, images, prompts, deep_prompts, branch)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Normalised features ``(C, D)`` fp32 of plain sentences, encoded ``chunk`` at a time to bound the memory."""
        features = []
        for start in range(0, len(texts), chunk):
            ids, end = self.tokenize_short(texts[start : start + chunk])
            features.append(self.encode_text(self.embed(ids), end).float())
        return nn.functional.normalize(torch.cat(features), dim=-1)


def load_prompted_clip(
    name: str,
    size: Sequence[int],
    precision: str,
    pixel_stats: tuple[Sequence[float], Sequence[float]] | None = None,
) -> PromptedCLIP:
    """A frozen :class:`PromptedCLIP` on the CPU, in ``precision``, for images of ``size``.

    Args:
        name: see :func:`load_clip`.
        size: INPUT.SIZE, height and width in pixels.
        precision: one of :data:`.precision.PRECISIONS`.
        pixel_stats: INPUT.PIXEL_MEAN and PIXEL_STD; None where nobody normalises the images.

    Raises:
        ValueError: ``size`` is not the resolution that this CLIP takes, or ``pixel_stats`` are not those that its file
            says it was trained with.
    """
    print(f"Loading CLIP (backbone: {name})")
    prompted = PromptedCLIP(load_clip(name))
    needed = (prompted.input_size, prompted.input_size)
    if tuple(size) != needed:
        raise ValueError(
            f"INPUT.SIZE must be {needed}, the input of {name}, got {tuple(size)}; "
            f'add INPUT.SIZE "{needed}" to the command line'
        )
    _check_pixel_stats(name, getattr(prompted.clip, "pixel_stats", None), pixel_stats)
    cast_clip(prompted.clip, precision)
    return prompted


def load_backbone(cfg: CfgNode, precision: str, name: str = "") -> PromptedCLIP:
    """The CLIP that a configuration names, or the one named ``name``, for images as its INPUT node makes them.

    Raises:
        ValueError: see :func:`load_prompted_clip`.
    """
    pixel_stats = (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    return load_prompted_clip(name or cfg.MODEL.BACKBONE.NAME, cfg.INPUT.SIZE, precision, pixel_stats)


def _check_pixel_stats(
    name: str,
    needed: tuple[Sequence[float], Sequence[float]] | None,
    found: tuple[Sequence[float], Sequence[float]] | None,
) -> None:
    if needed is None or found is None:
        return
    if any(
        abs(a - b) > 1e-3 for ours, theirs in zip(needed, found, strict=True) for a, b in zip(ours, theirs, strict=True)
    ):
        mean, std = ([round(value, 8) for value in part] for part in needed)
        raise ValueError(
            f"INPUT.PIXEL_MEAN and PIXEL_STD must be {mean} and {std}, by which the images of {name} are normalised, "
            f'got {list(found[0])} and {list(found[1])}; add INPUT.PIXEL_MEAN "{mean}" INPUT.PIXEL_STD "{std}" to the '
            "command line"
        )
