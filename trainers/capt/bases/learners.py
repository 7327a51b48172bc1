"""Base learners: what another method's checkpoint makes of the frozen CLIP that CAPT stands on.

A new base learner is one function that reads its checkpoint folder and one line here; from outside of this package it
is the same function and :func:`register_base_learner` (docs/BASES.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbone.prompted_clip import PromptedCLIP
from .base_model import BaseModel, BaseSpec, check_width, class_logits, entry, learner_state
from .context import class_tokens, left_over, place_context, plain_name
from .coop_form import load_atprompt, load_kgcoop, load_prograd
from .coprompt import load_coprompt
from .distilled import load_promptkd
from .keys import WORDS, check_keys
from .mma import load_mma
from .mmrl import load_mmrl
from .prompted import load_cocoop, load_independent, load_maple, load_vpt
from .registry import BASE_LEARNERS, find_learner, learner_names, register_base_learner
from .tcp import load_tcp

__all__ = [
    "BASE_LEARNERS",
    "BaseModel",
    "BaseSpec",
    "build_base",
    "class_logits",
    "register_base_learner",
    "zero_shot",
]


class ZeroshotCLIP(BaseModel):
    """CLIP with a hand-written prompt."""

    def __init__(self, prompted: PromptedCLIP, template: str):
        super().__init__(prompted)
        if "{}" not in template:
            raise ValueError(f'the prompt template must hold "{{}}" for the class name, got "{template}"')
        self.template = template

    def _text_features(self, classnames: list[str]) -> Tensor:
        return self.prompted.text_features([self.template.format(plain_name(name)) for name in classnames])


class CoOp(BaseModel):
    """CLIP with CoOp's context vectors before (or around) the class name."""

    context: Tensor  # (n, Dt)

    def __init__(self, prompted: PromptedCLIP, context: Tensor, class_token_position: str = "end"):
        super().__init__(prompted)
        self.class_token_position = class_token_position
        self.register_buffer("context", context.float(), persistent=False)

    def _text_features(self, classnames: list[str]) -> Tensor:
        num_context = len(self.context)
        words = self.prompted.tokenizer.placeholder(num_context)  # only how many tokens there are matters
        tokens = class_tokens(self.prompted, classnames, words, num_context, self.class_token_position)
        prompts = place_context(self.context, tokens.prefix, tokens.suffix, tokens.order, tokens.length)
        return self.prompted.encode_text(prompts, tokens.eot)

    def _fingerprinted(self) -> dict[str, Tensor]:
        return {"context": self.context, "position": torch.tensor([ord(c) for c in self.class_token_position])}


def _load_zeroshot(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    return ZeroshotCLIP(prompted, spec.template)


def _load_coop(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    path, state = learner_state(spec, "prompt_learner")
    check_keys(state, path, spec, WORDS, "ctx")
    context = entry(state, "ctx", path)
    if context.dim() != 2:
        raise ValueError(f'"{path}" holds {_of_many_contexts(context, state.get("token_prefix"))}')
    check_width(context, prompted.text_width, "ctx", path)
    words = left_over(prompted, state.get("token_suffix"))
    if len(words) and spec.class_token_position != "end":
        raise ValueError(
            f'"{path}" has words behind its learned context that were not learned, which is served with the class name '
            "at the end only; set TRAINER.CAPT.BASE.CLASS_TOKEN_POSITION end"
        )
    return CoOp(prompted, torch.cat([context, words]), spec.class_token_position)


def _of_many_contexts(context: Tensor, prefix: Tensor | None) -> str:
    """What a context ``(N, n, Dt)`` is one of many for, as the stored start tokens ``(C, 1, Dt)`` tell."""
    of_classes = f"one context for each of {len(context)} classes (CSC True), which no new class has; "
    of_classes += "train the CoOp base with TRAINER.COOP.CSC False"
    of_plot = f"{len(context)} contexts for every class, as PLOT learns them; no base learner here serves that"
    if prefix is None:
        return f"{of_classes}. Or {of_plot}"
    return of_classes if len(prefix) == len(context) else of_plot


_SHIPPED = {
    "ZeroshotCLIP": _load_zeroshot,
    "CoOp": _load_coop,
    "CoCoOp": load_cocoop,
    "MaPLe": load_maple,
    "IVLP": load_independent,
    "PromptSRC": load_independent,
    "PromptKD": load_promptkd,
    "VPT": load_vpt,
    "KgCoOp": load_kgcoop,
    "ProGrad": load_prograd,
    "TCP": load_tcp,
    "MMA": load_mma,
    "MMRL": load_mmrl,
    "CoPrompt": load_coprompt,
    "ATPrompt": load_atprompt,
}
for _name, _load in _SHIPPED.items():
    register_base_learner(_name, _load)


def zero_shot(prompted: PromptedCLIP, template: str, classnames: Sequence[str]) -> BaseModel:
    """The same CLIP with a hand-written prompt, serving these classes; it was fitted to no image of them."""
    base = build_base(prompted, BaseSpec(template=template)).to(prompted.logit_scale.device)
    base.set_classes(classnames)
    return base


def build_base(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """The frozen base model that ``spec`` names.

    Raises:
        ValueError: unknown learner, or a checkpoint that does not fit it or this CLIP.
        FileNotFoundError: the checkpoint is not there.
    """
    load = find_learner(spec.name)
    if load is None:
        raise ValueError(
            f'TRAINER.CAPT.BASE.NAME must be one of {sorted(learner_names())}, got "{spec.name}"; '
            "a learner of your own comes with TRAINER.CAPT.BASE.MODULE"
        )
    base = load(prompted, spec)
    base.options = {**spec.options, **base.options}
    return base.eval().requires_grad_(False)
