"""Which weights a checkpoint may hold: one that a learner does not use means another method, and another model."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .base_model import BaseSpec

__all__ = ["CLIP", "PROMPTS", "VISUAL", "WORDS", "check_keys", "looks_like"]

_BLOCK = (
    r"transformer\.resblocks\.\d+\.(ln_[12]\.(weight|bias)|attn\.(in_proj_(weight|bias)|out_proj\.(weight|bias))|"
    r"mlp\.c_(fc|proj)\.(weight|bias))"
)
_TOWER = (
    rf"({_BLOCK}|(class|positional)_embedding|proj|text_projection|conv1\.weight|ln_(pre|post|final)\.(weight|bias)|"
    r"token_embedding\.weight)"
)
# Names that every learner may leave aside: those of CLIP itself, and embeddings of the classes it was trained on.
CLIP = rf"(image_encoder|text_encoder)\.{_TOWER}|logit_scale|dtype"
WORDS = r"(prompt_learner\.)?(token_(prefix|suffix|midfix|middle\d|embedding)2?|tokenized_prompts)"
# Names that the learners with prompts in the towers read.
VISUAL = r"image_encoder\.(VPT|transformer\.resblocks\.\d+\.VPT_shallow)"
PROMPTS = rf"prompt_learner\.ctx|text_encoder\.transformer\.resblocks\.\d+\.VPT_shallow|{VISUAL}"

# A name that only this method's checkpoints hold, in the order in which they are asked.
METHODS = {
    r"ctx_att\d": "ATPrompt",
    r"adapter_(image|text)\.fc": "CoPrompt",
    r"(text|visual|shared)_adapter": "MMA",
    r"representation_tokens|rep_tokens|proj_rep|_r2[vt]proj": "MMRL",
    r"film|linear_probe": "DePT",
    r"VPT_image_trans": "PromptKD",
    r"compound_prompts_text": "MaPLe",
    r"ZS_image_encoder": "PromptSRC",
    r"VPT_shallow|image_encoder\.VPT": "IVLP, VPT or PromptSRC",
    r"bias_vectors": "KgCoOp",
    r"meta_net\.linear2": "CoCoOp",
    r"ctx": "CoOp",
}


def check_keys(state: Mapping[str, Tensor], path: str, spec: BaseSpec, *known: str) -> None:
    """Refuse a checkpoint with weights that the learner would leave aside.

    Args:
        state: the checkpoint's weights by name; of these, TCP is known by ``meta_net.linear2.weight`` ``(4 Dt, h)``.
        path: of the checkpoint.
        spec: the learner.
        known: patterns of the names that the learner reads, or knows to be of no use.

    Raises:
        ValueError: names what nobody would use, and the method that it looks like.
    """
    pattern = re.compile("|".join(f"(?:{one})" for one in known))
    others = sorted(key for key in state if not pattern.fullmatch(key))
    if others:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        raise ValueError(
            f'"{path}" holds {others[:4]}{more}, which {spec.name} does not use; {looks_like(state)}: '
            "set TRAINER.CAPT.BASE.NAME to the method that wrote it"
        )


def looks_like(state: Mapping[str, Tensor]) -> str:
    """Whose checkpoint it looks like, as half a sentence, by its names and by ``ctx`` ``(n, Dt)`` beside a meta-net."""
    for name, method in METHODS.items():
        if any(re.search(name, key) for key in state):
            is_tcp = method == "CoCoOp" and not _fits_cocoop(state)  # the two have the same names
            return f"it looks like a checkpoint of {'TCP' if is_tcp else method}"
    return "it is of no method that is known here"


def _fits_cocoop(state: Mapping[str, Tensor]) -> bool:
    """Whether the meta-net shifts a context; TCP's makes tokens, four for every class."""
    shift, context = state.get("meta_net.linear2.weight"), state.get("ctx")
    return shift is None or context is None or len(shift) == context.shape[-1]
