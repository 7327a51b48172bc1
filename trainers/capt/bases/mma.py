"""MMA (Multi-Modal Adapter, CVPR 2024) as a base: bottlenecks beside the later blocks of both towers.

The bottlenecks of a block's two towers share their innermost layer. What they add is scaled by a number that is in no
checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from ..backbone.blocks import Branch
from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from .base_model import BaseModel, BaseSpec, check_width, entry, learner_state, options_of
from .context import plain_name
from .keys import WORDS, check_keys

__all__ = ["load_mma"]

OPTIONS = {"ADAPTER_SCALE": 0.001, "TEXT_CTX_INIT": "a photo of a"}  # the published configuration's


class Bottleneck(nn.Module):
    """``up(relu(shared(relu(down(x)))))`` in fp32; the layers are (weight, bias)."""

    def __init__(self, layers: Mapping[str, tuple[Tensor, Tensor]]):
        super().__init__()
        for name, (weight, bias) in layers.items():
            self.register_parameter(f"{name}_weight", nn.Parameter(weight))
            self.register_parameter(f"{name}_bias", nn.Parameter(bias))
        self.names = tuple(layers)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to the same."""
        y = x.float()
        for name in self.names:
            y = linear(y, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))
            y = y if name == "up" else relu(y)
        return y


class MMA(BaseModel):
    """CLIP with bottlenecks beside the blocks of both towers.

    Args:
        prompted: the frozen CLIP.
        text: block to bottleneck, of the text tower.
        visual: likewise, of the image tower.
        options: see OPTIONS.
    """

    def __init__(
        self,
        prompted: PromptedCLIP,
        text: Mapping[int, Bottleneck],
        visual: Mapping[int, Bottleneck],
        options: dict[str, Any],
    ):
        super().__init__(prompted)
        self.text = nn.ModuleDict({str(number): bottleneck for number, bottleneck in text.items()})
        self.visual = nn.ModuleDict({str(number): bottleneck for number, bottleneck in visual.items()})
        self.options = options

    def _beside(self, bottlenecks: nn.ModuleDict) -> Branch:
        scale = self.options["ADAPTER_SCALE"]

        def branch(number: int, block: nn.Module, x: Tensor) -> Tensor | None:
            if str(number) not in bottlenecks:
                return None
            normed = block.get_submodule("ln_1")(x)
            return (scale * bottlenecks[str(number)](normed)).to(x.dtype)

        return branch

    def _text_features(self, classnames: list[str]) -> Tensor:
        words = self.options["TEXT_CTX_INIT"]
        ids, eot = self.prompted.tokenize_short([f"{words} {plain_name(name)}." for name in classnames])
        return self.prompted.encode_text(self.prompted.embed(ids), eot, branch=self._beside(self.text))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images, seen with the bottlenecks."""
        return self.prompted.encode_image(images, branch=self._beside(self.visual))


def load_mma(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """MMA's base model.

    Raises:
        ValueError: the checkpoint is not of MMA, or of other towers.
    """
    options = options_of(spec, OPTIONS)
    path, state = learner_state(spec, "adapter_learner")
    adapter = r"(text|visual)_adapter\.\d+\.(down\.0|up)"
    check_keys(state, path, spec, WORDS, rf"({adapter}|shared_adapter\.\d+\.0)\.(weight|bias)")
    if not prompted.is_vit:
        raise ValueError(f'"{path}" holds adapters of a ViT; set MODEL.BACKBONE.NAME to its backbone')
    text = _bottlenecks(state, "text_adapter", path, prompted.text_width, len(prompted.clip.transformer.resblocks))
    width = int(prompted.vit.conv1.weight.shape[0])
    visual = _bottlenecks(state, "visual_adapter", path, width, len(prompted.vit.transformer.resblocks))
    return MMA(prompted, text, visual, options)


def _bottlenecks(state: dict[str, Tensor], tower: str, path: str, width: int, num_blocks: int) -> dict[int, Bottleneck]:
    """Block, counted from 0 where MMA counts from 1, to its bottleneck."""
    pattern = re.compile(rf"{tower}\.(\d+)\.up\.weight")
    numbers = sorted(int(match[1]) for key in state if (match := pattern.fullmatch(key)))
    if not numbers:
        entry(state, f"{tower}.*.up.weight", path)  # says that it is missing
    if numbers[0] < 1 or numbers[-1] > num_blocks:
        raise ValueError(f'"{path}" holds a {tower} at {numbers}; those of this CLIP stand at 1 to {num_blocks}')
    found = {}
    for number in numbers:
        places = {
            "down": f"{tower}.{number}.down.0",
            "shared": f"shared_adapter.{number}.0",
            "up": f"{tower}.{number}.up",
        }
        layers = {
            name: (entry(state, f"{place}.weight", path), entry(state, f"{place}.bias", path))
            for name, place in places.items()
        }
        check_width(layers["down"][0], width, f"{places['down']}.weight", path)
        found[number - 1] = Bottleneck(layers)
    return found
