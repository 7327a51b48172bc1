"""Methods whose prompts have CoOp's form once they are trained: KgCoOp, ProGrad, ATPrompt.

They differ from CoOp in how the context is learned, and in what their checkpoints hold besides it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..backbone.prompted_clip import PromptedCLIP
from ..run.files import checkpoint_file
from .base_model import BaseModel, BaseSpec, check_width, entry, learner_state
from .context import left_over
from .keys import CLIP, WORDS, check_keys
from .prompted import MAPLE, DeepPromptedCLIP, LearnedPrompts, maple_prompts

__all__ = ["load_atprompt", "load_kgcoop", "load_prograd"]


def load_kgcoop(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """KgCoOp's base model; its checkpoint also holds a meta-net and a bias that it never uses."""
    path, state = learner_state(spec, "prompt_learner")
    check_keys(state, path, spec, WORDS, r"ctx|bias_vectors|meta_net\.linear1\.(weight|bias)")
    return _with_one_context(prompted, state, path, spec.name)


def load_prograd(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """ProGrad's base model."""
    if spec.class_token_position != "end":
        raise ValueError("a ProGrad base has its class name at the end; set TRAINER.CAPT.BASE.CLASS_TOKEN_POSITION end")
    path, state = learner_state(spec, "prompt_learner")
    check_keys(state, path, spec, WORDS, "ctx")
    return _with_one_context(prompted, state, path, spec.name)


def load_atprompt(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """ATPrompt's base model, of its CoOp_ATP or its MaPLe_ATP: learned tokens and attributes take turns.

    An attribute of several tokens shifts what ATPrompt cuts out by as many, so its checkpoint says best what stands in
    the prompts: the attributes' embeddings, and the placeholders in front of the class name.
    """
    if _holds(spec, "MultiModalPromptLearner"):
        path, state = learner_state(spec, "MultiModalPromptLearner")
        check_keys(state, path, spec, WORDS, CLIP, MAPLE, r"prompt_learner\.ctx_att[123]")
        context, in_front = _with_attributes(prompted, state, path, "prompt_learner.")
        prompts = maple_prompts(prompted, spec, state, path, context)
        return DeepPromptedCLIP(prompted, replace(prompts, text_behind=in_front))
    path, state = learner_state(spec, "prompt_learner")
    if "ctx_att1" in state and "meta_net.linear1.weight" in state:
        raise ValueError(
            f'"{path}" is of CoCoOp_ATP, whose prompts follow the image; ATPrompt reads CoOp_ATP and MaPLe_ATP'
        )
    check_keys(state, path, spec, WORDS, r"ctx(_att[123])?")
    return DeepPromptedCLIP(prompted, LearnedPrompts(_with_attributes(prompted, state, path, "")[0]))


def _holds(spec: BaseSpec, model_name: str) -> bool:
    try:
        checkpoint_file(spec.directory, model_name, spec.epoch)
    except FileNotFoundError:
        return False
    return True


def _with_one_context(prompted: PromptedCLIP, state: dict[str, Tensor], path: str, name: str) -> BaseModel:
    words = left_over(prompted, state.get("token_suffix"))
    context = torch.cat([_shared_context(prompted, state, path, name), words])
    return DeepPromptedCLIP(prompted, LearnedPrompts(context))


def _shared_context(prompted: PromptedCLIP, state: dict[str, Tensor], path: str, name: str) -> Tensor:
    """The learned tokens ``(n, Dt)`` that all classes share."""
    context = entry(state, "ctx", path)
    if context.dim() != 2:
        raise ValueError(
            f'"{path}" holds contexts of the shape {tuple(context.shape)}, {name} needs one for all classes; '
            "train it with TRAINER.COOP.CSC False"
        )
    check_width(context, prompted.text_width, "ctx", path)
    return context


def _with_attributes(prompted: PromptedCLIP, state: dict[str, Tensor], path: str, prefix: str) -> tuple[Tensor, int]:
    """``(n, Dt)``: tokens of attribute 1, the attribute, tokens of attribute 2 ..., the context, what is left over.

    And how many tokens MaPLe_ATP's deeper blocks keep in front of the context, as if all lengths were the context's.
    """
    context = _shared_context(prompted, {"ctx": entry(state, f"{prefix}ctx", path)}, path, "ATPrompt")
    parts = []
    for number in (1, 2, 3):
        attribute = state.get(f"{prefix}token_middle{number}")  # (C, 1, Dt), the same for all classes
        if attribute is None:
            break
        parts += [entry(state, f"{prefix}ctx_att{number}", path), attribute[0].float()]
    if not parts:
        entry(state, f"{prefix}token_middle1", path)  # says that it is missing
    left = left_over(prompted, state.get(f"{prefix}token_suffix"), ["X"])
    return torch.cat([*parts, context, left]), 1 + len(parts) // 2 * (len(context) + 1)
