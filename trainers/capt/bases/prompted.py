"""Base learners with prompts inside the towers (MaPLe, IVLP, PromptSRC, VPT) or prompts that follow the image (CoCoOp).

Checkpoints are those of the original repositories and of this one alike: fp16 or fp32, of the whole model, with or
without the embeddings of the class names that they were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear, normalize

from ..backbone.blocks import BlockPrompts
from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from .base_model import BaseModel, BaseSpec, check_width, entry, learner_state
from .context import (
    ClassTokens,
    class_tokens,
    encode_texts_per_image,
    left_over,
    meta_net,
    place_context,
    plain_name,
    shared_length,
)
from .keys import CLIP, PROMPTS, VISUAL, WORDS, check_keys, looks_like

__all__ = [
    "MAPLE",
    "DeepPromptedCLIP",
    "LearnedPrompts",
    "check_backbone",
    "load_cocoop",
    "load_independent",
    "load_maple",
    "load_vpt",
    "maple_prompts",
    "visual_prompts",
]


# Names that maple_prompts reads.
MAPLE = r"prompt_learner\.(ctx|compound_prompts_text\.\d+|(proj|compound_prompt_projections\.\d+)\.(weight|bias))"


@dataclass(frozen=True)
class LearnedPrompts:
    """The prompts of both towers, fp32.

    Attributes:
        context: ``(n, Dt)`` in front of the class name, fixed words behind the learned tokens included; None for VPT.
        text: ``(J, n, Dt)`` of the text tower's deeper blocks, or None.
        visual: ``(m, Dv)`` in front of the image tower's first block, or None.
        visual_deep: ``(J, m, Dv)`` of its deeper blocks, or None.
        text_behind: tokens in front of those that ``text`` replaces, the start token included.
    """

    context: Tensor | None = None
    text: Tensor | None = None
    visual: Tensor | None = None
    visual_deep: Tensor | None = None
    text_behind: int = 1


class DeepPromptedCLIP(BaseModel):
    """CLIP with learned prompts in its towers; texts without a learned context are ``a photo of a {}.``"""

    context: Tensor | None
    text: Tensor | None
    visual: Tensor | None
    visual_deep: Tensor | None

    def __init__(self, prompted: PromptedCLIP, prompts: LearnedPrompts):
        super().__init__(prompted)
        self.names = sorted(vars(prompts).keys() - {"text_behind"})
        for name in self.names:
            self.register_buffer(name, getattr(prompts, name), persistent=False)
        self.text_behind = prompts.text_behind

    def _text_features(self, classnames: list[str]) -> Tensor:
        if self.context is None:
            return self.prompted.text_features([f"a photo of a {plain_name(name)}." for name in classnames])
        words = self.prompted.tokenizer.placeholder(len(self.context))
        tokens = class_tokens(self.prompted, classnames, words, len(self.context))
        prompts = place_context(self.context, tokens.prefix, tokens.suffix, length=tokens.length)
        deep: Tensor | BlockPrompts | None = self.text
        if self.text_behind != 1:
            deep = replace(BlockPrompts.of(self.text), behind=self.text_behind)
        return self.prompted.encode_text(prompts, tokens.eot, deep)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images, seen with the visual prompts."""
        return self.prompted.encode_image(images, self.visual, self.visual_deep)

    def _fingerprinted(self) -> dict[str, Tensor]:
        return {name: value for name in self.names if (value := getattr(self, name)) is not None}


class CoCoOp(BaseModel):
    """CLIP with a context that a meta-net shifts by the image; T is the one for no image at all, z = 0."""

    context: Tensor  # (n, Dt)
    tokens: ClassTokens  # of the classes in use
    shared: int  # so many of them are the same for all classes

    def __init__(self, prompted: PromptedCLIP, context: Tensor, meta: nn.Module):
        super().__init__(prompted)
        self.register_buffer("context", context, persistent=False)
        self.meta_net = meta

    def _class_tokens(self, classnames: Sequence[str]) -> ClassTokens:
        num_context = len(self.context)
        return class_tokens(self.prompted, classnames, self.prompted.tokenizer.placeholder(num_context), num_context)

    def _encode(self, z: Tensor, tokens: ClassTokens, shared: int) -> Tensor:
        contexts = self.context + self.meta_net(z.float()).unsqueeze(1)  # (B, n, Dt)
        parts = (self.prompted.encode_text, contexts, tokens.prefix, tokens.suffix, tokens.eot)
        encoded = encode_texts_per_image(*parts, length=tokens.length, shared=shared)  # (B, C, D)
        return normalize(encoded.float(), dim=-1)

    def _text_features(self, classnames: list[str]) -> Tensor:
        nothing = torch.zeros(1, self.embed_dim, device=self.context.device)
        tokens = self._class_tokens(classnames)
        return self._encode(nothing, tokens, shared_length(tokens, len(self.context)))[0]

    @torch.no_grad()
    def set_classes(self, classnames: Sequence[str]) -> None:
        """Compute T for these classes, and keep their tokens for the texts of each image."""
        super().set_classes(classnames)
        self.tokens = self._class_tokens(classnames)
        self.shared = shared_length(self.tokens, len(self.context))

    @torch.no_grad()
    def text_features_for(self, z: Tensor) -> Tensor:
        """T ``(B, C, D)`` for normalised image features ``(B, D)``."""
        return self._encode(z, self.tokens, self.shared)

    def _fingerprinted(self) -> dict[str, Tensor]:
        return {"context": self.context}


def load_cocoop(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """CoCoOp's base model; the checkpoint holds only the prompts and the meta-net."""
    path, state = learner_state(spec, "prompt_learner")
    check_keys(state, path, spec, WORDS, r"ctx|meta_net\.linear[12]\.(weight|bias)")
    context = entry(state, "ctx", path)
    check_width(context, prompted.text_width, "ctx", path)
    if len(left_over(prompted, state.get("token_suffix"))):
        raise ValueError(
            f'"{path}" has words behind its learned context that were not learned (its CTX_INIT has a comma), which no '
            "CoCoOp base here serves"
        )
    meta = meta_net(prompted.embed_dim, prompted.text_width)
    weights = {key: entry(state, f"meta_net.{key}", path) for key in meta.state_dict()}
    check_width(weights["linear1.weight"], prompted.embed_dim, "meta_net.linear1.weight", path)
    for key, value in meta.state_dict().items():
        if weights[key].shape != value.shape:
            raise ValueError(
                f'"meta_net.{key}" of "{path}" has shape {tuple(weights[key].shape)}, that of a CoCoOp on this CLIP '
                f"has {tuple(value.shape)}; {looks_like(state)}"
            )
    meta.load_state_dict(weights)
    return CoCoOp(prompted, context, meta)


def load_maple(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """MaPLe's base model: visual prompts are projections of the textual ones."""
    path, state = learner_state(spec, "MultiModalPromptLearner")
    check_keys(state, path, spec, WORDS, CLIP, MAPLE)
    return DeepPromptedCLIP(prompted, maple_prompts(prompted, spec, state, path))


def maple_prompts(
    prompted: PromptedCLIP, spec: BaseSpec, state: dict[str, Tensor], path: str, context: Tensor | None = None
) -> LearnedPrompts:
    """The prompts of MaPLe and of those that build on it.

    Args:
        prompted: the frozen CLIP.
        spec: says the words behind the learned tokens.
        state: the checkpoint's weights.
        path: of the checkpoint.
        context: ``(n, Dt)`` all that stands in front of the class name, where it is more than the learned tokens and
            these words.
    """
    check_backbone(prompted, state, path)
    learned = entry(state, "prompt_learner.ctx", path)
    check_width(learned, prompted.text_width, "prompt_learner.ctx", path)

    def projected(prompt: Tensor, name: str) -> Tensor:
        weight, bias = (entry(state, f"prompt_learner.{name}.{part}", path) for part in ("weight", "bias"))
        return linear(prompt, weight, bias)

    text = _numbered(state, r"prompt_learner\.compound_prompts_text\.(\d+)")
    deep = [projected(prompt, f"compound_prompt_projections.{i}") for i, prompt in enumerate(text)]
    if context is None:
        context = _with_fixed_words(prompted, learned, spec.context_words, state, path)
    return LearnedPrompts(context, text=_stack(text), visual=projected(learned, "proj"), visual_deep=_stack(deep))


def load_independent(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """The base model of IVLP or PromptSRC: prompts of each tower hang on its blocks."""
    path, state = learner_state(spec, "VLPromptLearner")
    check_keys(state, path, spec, WORDS, CLIP, PROMPTS, r"prompt_learner\.ZS_image_encoder\..*")
    check_backbone(prompted, state, path)
    context = entry(state, "prompt_learner.ctx", path)
    check_width(context, prompted.text_width, "prompt_learner.ctx", path)
    text = _stack(_numbered(state, r"text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow"))
    context = _with_fixed_words(prompted, context, spec.context_words, state, path)
    visual = visual_prompts(state)
    return DeepPromptedCLIP(prompted, LearnedPrompts(context, text, visual["visual"], visual["visual_deep"]))


def load_vpt(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """VPT's base model: visual prompts only."""
    path, state = learner_state(spec, "prompt_learner")
    check_keys(state, path, spec, WORDS, CLIP, VISUAL)
    check_backbone(prompted, state, path)
    entry(state, "image_encoder.VPT", path)
    visual = visual_prompts(state)
    return DeepPromptedCLIP(prompted, LearnedPrompts(None, None, visual["visual"], visual["visual_deep"]))


def visual_prompts(state: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """``visual`` ``(m, Dv)`` and ``visual_deep`` ``(J, m, Dv)`` in fp32, from an image tower's checkpoint."""
    shallow = state.get("image_encoder.VPT")
    deep = _numbered(state, r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow")
    return {"visual": None if shallow is None else shallow.float(), "visual_deep": _stack(deep)}


def _numbered(state: dict[str, Tensor], pattern: str) -> list[Tensor]:
    """Entries whose key matches, in fp32, in order of the number in it."""
    found = {int(match[1]): value for key, value in state.items() if (match := re.fullmatch(pattern, key))}
    return [found[number].float() for number in sorted(found)]


def _stack(prompts: list[Tensor]) -> Tensor | None:
    return torch.stack(prompts) if prompts else None


def check_backbone(prompted: PromptedCLIP, state: dict[str, Tensor], path: str) -> None:
    """These checkpoints hold all of CLIP: refuse another CLIP than the run's; half precision is no difference.

    Raises:
        ValueError: names the weight that differs, of another CLIP, or of a method that tunes CLIP itself.
    """
    if not prompted.is_vit:
        raise ValueError(f'"{path}" holds visual prompts, which need a ViT; set MODEL.BACKBONE.NAME to its backbone')
    own = {f"image_encoder.{key}": value for key, value in prompted.vit.state_dict().items()}
    for key, value in prompted.clip.state_dict().items():
        own["logit_scale" if key == "logit_scale" else f"text_encoder.{key}"] = value
    for key in CLIPS_OWN:
        if key in state and not _is_same(state[key], own[key]):
            raise ValueError(
                f'"{path}" was trained on another CLIP ({key} differs); set MODEL.BACKBONE.NAME to its backbone'
            )
    for key in sorted(own.keys() & state.keys()):
        if own[key].shape == state[key].shape and not _is_same(state[key], own[key]):
            raise ValueError(
                f'"{path}" holds a CLIP whose own weights were tuned ({key} differs), which no base learner here '
                "serves; or it is of another CLIP: set MODEL.BACKBONE.NAME to its backbone"
            )


# Weights by which a CLIP is known.
CLIPS_OWN = ("image_encoder.conv1.weight", "image_encoder.proj", "text_encoder.text_projection")
ROUNDING = 0.005  # of a weight's norm: more than bfloat16 takes away


def _is_same(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two weights are one, as far as half precision keeps it; what is near zero may have gone to zero."""
    if theirs.shape != ours.shape:
        return False
    ours, theirs = ours.detach().float().cpu(), theirs.float().cpu()
    return bool((theirs - ours).norm() <= ROUNDING * ours.norm() + 1e-5 * ours.numel() ** 0.5)


@torch.no_grad()
def _with_fixed_words(
    prompted: PromptedCLIP, context: Tensor, words: str, state: dict[str, Tensor], path: str
) -> Tensor:
    """The learned tokens, and behind them those of ``words`` that were not learned, as MaPLe keeps ``of a``.

    Where the checkpoint holds the embeddings behind the context, they must begin with these words.
    """
    n = len(context)
    if not words or n > 4:  # the family's rule: longer contexts start at random, without words
        return context
    ids = torch.tensor([prompted.tokenizer.encode(words.replace("_", " "))[n:]], dtype=torch.long)
    fixed = prompted.embed(ids)[0].float()
    stored = state.get("prompt_learner.token_suffix")
    if stored is not None and len(fixed):
        alike = cosine_similarity(stored[0, : len(fixed)].float().cpu(), fixed.cpu(), dim=-1)
        if alike.min() < 0.99:
            raise ValueError(f'"{path}" was trained with another CTX_INIT than "{words}"; name it in the base\'s spec')
    return torch.cat([context, fixed.to(context.device)])
