"""What a fork's modules return where CLIP's own return one tensor: what is meant, where that is certain.

TextRefiner's blocks give their attention besides; PLOT's attention pool gives every position, the image's first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clip.model import ModifiedResNet

__all__ = ["image_feature", "sequence_of"]


def sequence_of(output: Any, x: Tensor, name: str) -> Tensor:
    """The sequence that a block made of ``x`` ``(length, batch, width)``: the one tensor of its shape in ``output``.

    Raises:
        ValueError: there is none, or more than one; names the block and the shapes.
    """
    if isinstance(output, Tensor) and output.shape == x.shape:
        return output
    fitting = [value for value in _tensors(output) if value.shape == x.shape]
    if len(fitting) != 1:
        raise ValueError(
            f"{name} of this fork of CLIP returns {_shapes(output)} for a sequence {tuple(x.shape)}: "
            "which one is the sequence is not certain; start from a folder with another clip/"
        )
    return fitting[0]


def image_feature(visual: ModifiedResNet, images: Tensor) -> Tensor:
    """The feature ``(B, D)`` that a ResNet tower gives for images ``(B, 3, H, W)``.

    Raises:
        ValueError: none of what it returns is such a feature; names the shapes.
    """
    output, num = visual(images), len(images)
    places, width = len(visual.get_parameter("attnpool.positional_embedding")), visual.output_dim
    found = [value for value in _tensors(output) if value.shape == (num, width)]
    if len(found) == 1:
        return found[0]
    every = [value for value in _tensors(output) if value.dim() == 3 and value.shape[-1] == width]
    if not found and len(every) == 1 and {num, places} == set(every[0].shape[:2]):
        if num == places and num > 1:  # images and positions cannot be told apart: ask for fewer images
            return torch.cat([image_feature(visual, images[:1]), image_feature(visual, images[1:])])
        return every[0][0] if every[0].shape[0] == places else every[0][:, 0]  # the pooled one stands first
    raise ValueError(
        f"the image tower of this fork of CLIP returns {_shapes(output)} for {num} images: which of it is the feature "
        f"{(num, width)} is not certain; start from a folder with another clip/"
    )


def _tensors(output: Any) -> list[Tensor]:
    values = output if isinstance(output, tuple | list) else [output]
    return [value for value in values if isinstance(value, Tensor)]


def _shapes(output: Any) -> str:
    values = list(output) if isinstance(output, tuple | list) else [output]
    return ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values) or "nothing"
