"""A stock CLIP, run with prompts at any depth, giving features *and* patch tokens.

Every repository of the CoOp family forks ``clip/model.py`` to push prompts into its blocks. Here the stock modules are
walked from outside, so an installed ``clip``, a vendored folder and the forks all work, and the prompts are arguments.
Only the prompts' semantics come from the family: text prompts stand in the embeddings and, at deeper layers, replace
the tokens behind the start token; visual prompts are appended behind the patch tokens (VPT, MaPLe, IVLP).

Shapes: B batch, C texts, L context length, N patches, D joint width, Dv visual width, Dt text width, n prompt length.
"""

from __future__ import annotations

import copy
import difflib
import logging
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, nn

from . import stock_clip
from .precision import cast_clip

if TYPE_CHECKING:
    from clip.model import CLIP, ModifiedResNet, Transformer, VisionTransformer

__all__ = [
    "ImageFeatures",
    "PromptedCLIP",
    "encode_image_with",
    "encode_text_with",
    "load_clip",
    "load_prompted_clip",
    "tokenize",
    "without_padding",
]

logger = logging.getLogger(__name__)

DOWNLOAD_FOLDER = os.path.expanduser("~/.cache/clip")  # where OpenAI's package and all of the family look


@dataclass(frozen=True)
class ImageFeatures:
    """What CLIP's image tower gives for a batch; nothing is normalised.

    Attributes:
        feature: ``(B, D)`` joint-space feature, ``proj(ln_post(cls))``.
        cls: ``(B, Dv)`` class token behind the last block, before ``ln_post``; None for a ResNet.
        tokens: ``(B, N, Dv)`` patch tokens behind the last block, prompt tokens left out; None for a ResNet.
    """

    feature: Tensor
    cls: Tensor | None
    tokens: Tensor | None


# --------------------------------------------------------------------------------------------------------------------
# Loading
# --------------------------------------------------------------------------------------------------------------------


def load_clip(name: str) -> CLIP:
    """A stock CLIP in fp32 on the CPU, frozen and in eval mode.

    Args:
        name: one of OpenAI's names (``ViT-B/16``; downloaded by the clip package), or the path of a ``.pt`` file that
            holds OpenAI's TorchScript archive or a plain state dict in OpenAI's layout.

    Raises:
        FileNotFoundError: neither a known name nor a file; the message lists the names.
        ValueError: the file is no CLIP in OpenAI's layout.
        ConnectionError: the weights cannot be downloaded; the message says where to put the file by hand.
    """
    path = _weights_path(name)
    about = os.stat(path)
    key = path, about.st_mtime_ns, about.st_size
    if key not in _kept:
        model = _built(name, _read_state_dict(path))
        if not _is_keeping:
            return model
        if len(_kept) > 1:  # a student's and its teacher's
            _kept.clear()
        _kept[key] = model
    return copy.deepcopy(_kept[key])


_kept: dict[tuple[str, int, int], CLIP] = {}
_is_keeping = False


def keep_clips() -> None:
    """Copy a CLIP that was loaded before instead of reading it again: for a process that does many runs."""
    global _is_keeping
    _is_keeping = True


def _built(name: str, state_dict: dict[str, Tensor]) -> CLIP:
    if "text_projection" not in state_dict or not any(k.startswith("visual.") for k in state_dict):
        raise ValueError(
            f'"{name}" holds no CLIP in OpenAI\'s layout (no text_projection or visual.* in {len(state_dict)} keys); '
            f"give one of {sorted(stock_clip.model_urls())} or a file converted to that layout"
        )
    try:
        model = stock_clip.build_clip(state_dict)
    except (KeyError, RuntimeError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f'"{name}" is not a complete CLIP in OpenAI\'s layout: {first_line}') from error
    return model.float().eval().requires_grad_(False)


def _weights_path(name: str) -> str:
    if os.path.isfile(name):
        return name
    names = sorted(stock_clip.model_urls())
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f' (do you mean "{near[0]}"?)' if near else ""
        raise FileNotFoundError(f'MODEL.BACKBONE.NAME "{name}" is neither a file nor one of {names}{hint}')
    try:
        return stock_clip.download(name, DOWNLOAD_FOLDER)
    except (OSError, RuntimeError) as error:
        file_name = os.path.basename(stock_clip.model_urls()[name])
        raise ConnectionError(
            f'CLIP "{name}" cannot be downloaded ({error}); put {file_name} into {DOWNLOAD_FOLDER} '
            "or give its path as MODEL.BACKBONE.NAME"
        ) from error


def _read_state_dict(path: str) -> dict[str, Tensor]:
    try:
        if _is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch.jit.load is deprecated; OpenAI's files need it
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(path, map_location="cpu").state_dict()
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged or foreign file
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'"{path}" cannot be read as CLIP weights ({first_line}); is the file complete?') from error
    state_dict = state_dict.get("state_dict", state_dict) if isinstance(state_dict, dict) else state_dict
    if not isinstance(state_dict, dict) or not all(isinstance(v, Tensor) for v in state_dict.values()):
        raise ValueError(f'"{path}" holds no state dict of tensors, so it is no CLIP in OpenAI\'s layout')
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in entry for entry in archive.namelist())


# --------------------------------------------------------------------------------------------------------------------
# Walking the stock blocks
# --------------------------------------------------------------------------------------------------------------------


def tokenize(texts: Sequence[str], context_length: int = 77) -> Tensor:
    """Token ids ``(C, L)`` int64; too long a text is cut behind its last token that fits, and counted in the log."""
    encode, vocabulary = stock_clip.tokenizer.encode, stock_clip.tokenizer.encoder
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ids = torch.zeros(len(texts), context_length, dtype=torch.long)
    num_cut = 0
    for row, text in enumerate(texts):
        tokens = encode(text)
        num_cut += len(tokens) > context_length - 2
        tokens = [start, *tokens[: context_length - 2], end]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    if num_cut:
        logger.warning("%d of %d texts were cut to the context of %d tokens", num_cut, len(texts), context_length)
    return ids


def without_padding(ids: Tensor) -> Tensor:
    """Token ids ``(C, L)`` cut behind the longest text's end token, which has the highest id (one host-device sync)."""
    return ids[:, : int(ids.argmax(dim=-1).max()) + 1]


def _run_blocks(transformer: Transformer, x: Tensor, deep_prompts: Tensor | None, first: int | None) -> Tensor:
    """Blocks on ``x`` (length, batch, width); from block 1 on, prompt tokens are replaced by that block's own.

    Args:
        deep_prompts: ``(J, n, width)`` or ``(J, batch, n, width)`` for blocks 1..J; None for shallow prompts.
        first: position of the first prompt token; None for "the last n tokens".
    """
    for depth, block in enumerate(transformer.resblocks):
        if deep_prompts is not None and 1 <= depth <= len(deep_prompts):
            prompt = deep_prompts[depth - 1].to(x.dtype)
            prompt = prompt.unsqueeze(1).expand(-1, x.shape[1], -1) if prompt.dim() == 2 else prompt.transpose(0, 1)
            start = x.shape[0] - prompt.shape[0] if first is None else first
            x = torch.cat([x[:start], prompt, x[start + prompt.shape[0] :]])
        x = block(x)
    return x


@contextmanager
def _masks_cut_to(transformer: Transformer, length: int) -> Iterator[None]:
    """Causal masks of the blocks for sequences shorter than CLIP's context; every block keeps a mask of its own."""
    whole = [
        (block, mask) for block in transformer.resblocks if (mask := getattr(block, "attn_mask", None)) is not None
    ]
    for block, mask in whole:
        block.attn_mask = mask[:length, :length]
    try:
        yield
    finally:
        for block, mask in whole:
            block.attn_mask = mask


def encode_text_with(
    transformer: Transformer,
    positional_embedding: Tensor,
    ln_final: nn.Module,
    text_projection: Tensor,
    embeddings: Tensor,
    eot: Tensor,
    deep_prompts: Tensor | None = None,
) -> Tensor:
    """Text features ``(C, D)``, not normalised, of token embeddings ``(C, L, Dt)`` that end at ``eot`` ``(C,)``.

    L may be less than CLIP's context: the tower is causal and the feature is read at ``eot``, so what stands behind the
    longest text changes nothing and need not be there.
    """
    length = embeddings.shape[1]
    x = embeddings + positional_embedding[:length].to(embeddings.dtype)
    with _masks_cut_to(transformer, length):
        x = _run_blocks(transformer, x.transpose(0, 1), deep_prompts, first=1).transpose(0, 1)
    x = ln_final(x).to(embeddings.dtype)
    return x[torch.arange(len(x), device=x.device), eot] @ text_projection.to(embeddings.dtype)


def _has_tokens(visual: VisionTransformer | ModifiedResNet) -> TypeGuard[VisionTransformer]:
    """Whether the image tower is a ViT; a ResNet has no tokens to prompt."""
    return hasattr(visual, "transformer")


def encode_image_with(
    visual: VisionTransformer | ModifiedResNet,
    images: Tensor,
    prompts: Tensor | None = None,
    deep_prompts: Tensor | None = None,
) -> ImageFeatures:
    """Features of images ``(B, 3, H, W)`` from CLIP's image tower ``visual``.

    Args:
        prompts: ``(n, Dv)`` or ``(B, n, Dv)``, appended behind the patch tokens before ``ln_pre``.
        deep_prompts: ``(J, n, Dv)``, replacing the last n tokens of blocks 1..J.

    Raises:
        ValueError: visual prompts for a ResNet tower.
    """
    if not _has_tokens(visual):
        if prompts is not None:
            raise ValueError("visual prompts need a ViT; set MODEL.BACKBONE.NAME to one (ViT-B/16, ViT-L/14 ...)")
        return ImageFeatures(visual(images.to(visual.conv1.weight.dtype)), None, None)
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, N, Dv)
    num_patches = x.shape[1]
    cls = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
    if prompts is not None:
        x = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    x = _run_blocks(visual.transformer, x.transpose(0, 1), deep_prompts, first=None).transpose(0, 1)
    cls, tokens = x[:, 0], x[:, 1 : 1 + num_patches]
    feature = visual.ln_post(cls) @ visual.proj.to(x.dtype)
    return ImageFeatures(feature, cls, tokens)


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

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(C, L)`` on the model's device; see :func:`tokenize`."""
        return tokenize(texts, self.context_length).to(self.clip.token_embedding.weight.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings ``(C, L, Dt)``."""
        return self.clip.token_embedding(ids).to(self.dtype)

    def encode_text(self, embeddings: Tensor, eot: Tensor, deep_prompts: Tensor | None = None) -> Tensor:
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
        )

    def encode_image(
        self, images: Tensor, prompts: Tensor | None = None, deep_prompts: Tensor | None = None
    ) -> ImageFeatures:
        """Features of images ``(B, 3, H, W)``; see :func:`encode_image_with`."""
        return encode_image_with(self.clip.visual, images, prompts, deep_prompts)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Normalised features ``(C, D)`` fp32 of plain sentences, encoded ``chunk`` at a time to bound the memory."""
        features = []
        for start in range(0, len(texts), chunk):
            ids = without_padding(self.tokenize(texts[start : start + chunk]))
            features.append(self.encode_text(self.embed(ids), ids.argmax(dim=-1)).float())
        return nn.functional.normalize(torch.cat(features), dim=-1)


def load_prompted_clip(name: str, size: Sequence[int], precision: str) -> PromptedCLIP:
    """A frozen :class:`PromptedCLIP` on the CPU, in ``precision``, for images of ``size``.

    Args:
        name: see :func:`load_clip`.
        size: INPUT.SIZE, height and width in pixels.
        precision: one of :data:`.precision.PRECISIONS`.

    Raises:
        ValueError: ``size`` is not the resolution that this CLIP takes.
    """
    print(f"Loading CLIP (backbone: {name})")
    prompted = PromptedCLIP(load_clip(name))
    needed = (prompted.input_size, prompted.input_size)
    if tuple(size) != needed:
        raise ValueError(
            f"INPUT.SIZE must be {needed}, the input of {name}, got {tuple(size)}; "
            f'add INPUT.SIZE "{needed}" to the command line'
        )
    cast_clip(prompted.clip, precision)
    return prompted
