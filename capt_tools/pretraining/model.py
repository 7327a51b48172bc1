"""A fresh CLIP of chosen sizes, its towers, and its weights in OpenAI's layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.capt.backbone.prompted_clip import encode_image_with, encode_text_with, tokenize, without_padding
from trainers.capt.backbone.stock_clip import _model_py as stock_model

if TYPE_CHECKING:
    from clip.model import CLIP

__all__ = ["build", "encode_images", "encode_texts", "save", "standardise", "tokenize", "write_atomically"]

VOCABULARY, CONTEXT = 49408, 77
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def build(
    *, image_size: int, patch: int, vision_width: int, vision_layers: int, text_width: int, text_layers: int, embed: int
) -> CLIP:
    """A stock CLIP with random weights.

    Widths are multiples of 64, as the stock package infers the number of heads from them.

    Raises:
        ValueError: sizes that the stock package could not infer from the weights again.
    """
    for flag, width in (("--vision-width", vision_width), ("--text-width", text_width)):
        if width < 64 or width % 64:
            raise ValueError(f"{flag} must be a multiple of 64, got {width}; stock CLIP has one head per 64")
    if image_size % patch:
        raise ValueError(f"--image-size must be a multiple of --patch, got {image_size} and {patch}")
    model: CLIP = stock_model.CLIP(
        embed,
        image_size,
        vision_layers,
        vision_width,
        patch,
        CONTEXT,
        VOCABULARY,
        text_width,
        text_width // 64,
        text_layers,
    ).float()
    return model


def encode_images(model: CLIP, images: Tensor) -> Tensor:
    """Normalised features ``(B, D)`` of standardised images ``(B, 3, S, S)``."""
    return F.normalize(encode_image_with(model.visual, images).feature.float(), dim=-1)


def encode_texts(model: CLIP, ids: Tensor) -> Tensor:
    """Normalised features ``(C, D)`` of token ids ``(C, 77)``.

    The text tower is causal, so what stands behind the last end token cannot matter and is not computed.
    """
    ids = without_padding(ids)
    features = encode_text_with(
        model.transformer,
        model.positional_embedding,
        model.ln_final,
        model.text_projection,
        model.token_embedding(ids),
        ids.argmax(dim=-1),
    )
    return F.normalize(features.float(), dim=-1)


def standardise(images: Tensor) -> Tensor:
    """CLIP's pixel statistics on images ``(B, 3, S, S)`` in 0 ... 1."""
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return (images - mean) / std


def save(model: CLIP, path: str | os.PathLike[str]) -> None:
    """Writes the weights as OpenAI's state dict: plain tensors, fp16."""
    write_atomically({key: value.detach().cpu().half() for key, value in model.state_dict().items()}, path)


def write_atomically(content: object, path: str | os.PathLike[str]) -> None:
    """`torch.save` beside the file, then a rename: a kill leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
