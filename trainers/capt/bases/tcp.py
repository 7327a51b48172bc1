"""TCP (Textual-based Class-aware Prompt tuning, arXiv 2311.18231) as a base.

A learned context stands in front of every class name; and at one block of the text tower, the tokens of that context
are replaced by what a small net makes of the class's own text feature.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..backbone.blocks import BlockPrompts
from ..backbone.prompted_clip import PromptedCLIP
from .base_model import BaseModel, BaseSpec, check_width, entry, learner_state, options_of
from .context import place_context, plain_name, text_tokens
from .keys import WORDS, check_keys
from .templates import template_of

__all__ = ["load_tcp"]

logger = logging.getLogger(__name__)

NUM_TOKENS = 4  # class-aware tokens of a class
BLOCK = 8  # where the class-aware tokens enter, block 0 the first
# What stands behind the four placeholders, and what the class is described by, where that is not the usual template.
BEHIND = {
    "OxfordPets": "{}, a type of pet.",
    "FGVCAircraft": "{}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "StanfordCars": "{}, a type of car",
    "Food101": "{}, a type of food.",
    "UCF101": "person doing {}.",
}
DESCRIBED = {
    "FGVCAircraft": "a photo of an aircraft {}.",
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "Food101": "a photo of a {}, a type of food.",
}


class TCP(BaseModel):
    """CLIP with a shared context and class-aware tokens at one block."""

    context: Tensor  # (n, Dt)

    def __init__(self, prompted: PromptedCLIP, context: Tensor, down: nn.Linear, up: nn.Linear, dataset: str):
        super().__init__(prompted)
        self.register_buffer("context", context, persistent=False)
        self.down, self.up = down, up
        self.behind = BEHIND.get(dataset, "{}.")
        self.described = DESCRIBED.get(dataset, template_of(dataset))

    def _text_features(self, classnames: list[str]) -> Tensor:
        names = [plain_name(name) for name in classnames]
        texts = [f"X X X X {self.behind.format(name)}" for name in names]
        tokens = text_tokens(self.prompted, texts, len(self.context))
        prompts = place_context(self.context, tokens.prefix, tokens.suffix, length=tokens.length)
        return self.prompted.encode_text(prompts, tokens.eot, self._class_aware(names))

    def _class_aware(self, names: list[str]) -> BlockPrompts | None:
        """Tokens ``(C, m, Dt)`` at the one block."""
        if len(self.prompted.clip.transformer.resblocks) <= BLOCK:
            logger.warning(
                "the text tower has no block %d, where TCP's class-aware tokens enter; TCP skips them", BLOCK
            )
            return None
        hidden = self.down(self.prompted.text_features([self.described.format(name) for name in names]))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return BlockPrompts({BLOCK: self.up(hidden).unflatten(-1, (NUM_TOKENS, -1))})

    def _fingerprinted(self) -> dict[str, Tensor]:
        return {"context": self.context}


def load_tcp(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """TCP's base model; its prompts' words follow the data set, as in its code."""
    options_of(spec, {})
    path, state = learner_state(spec, "prompt_learner")
    check_keys(state, path, spec, WORDS, r"ctx|meta_net\.linear[12]\.(weight|bias)")
    context = entry(state, "ctx", path)
    check_width(context, prompted.text_width, "ctx", path)
    down, up = (_linear(state, f"meta_net.{name}", path) for name in ("linear1", "linear2"))
    check_width(down.weight, prompted.embed_dim, "meta_net.linear1.weight", path)
    if up.out_features != NUM_TOKENS * prompted.text_width:  # CoCoOp's net has the same names
        raise ValueError(
            f'"meta_net.linear2.weight" of "{path}" gives {up.out_features} numbers a class, TCP\'s gives '
            f"{NUM_TOKENS} x {prompted.text_width}; set TRAINER.CAPT.BASE.NAME to the method that wrote it"
        )
    return TCP(prompted, context, down, up, spec.dataset)


def _linear(state: dict[str, Tensor], name: str, path: str) -> nn.Linear:
    weight, bias = (entry(state, f"{name}.{part}", path) for part in ("weight", "bias"))
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
