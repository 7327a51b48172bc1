"""Base learners: what another method's checkpoint makes of the frozen CLIP that CAPT stands on.

A base model answers three questions: the features of an image, the text features T of a list of class names, and the
base logits l0 = s z T^T. Nothing of it is trained. A new base learner is one function that reads its checkpoint folder
and one line in :data:`BASE_LEARNERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .context import class_tokens, place_context, plain_name
from .files import checkpoint_file, read_checkpoint
from .prompted_clip import ImageFeatures, PromptedCLIP

__all__ = ["BASE_LEARNERS", "BaseModel", "BaseSpec", "build_base"]


@dataclass(frozen=True)
class BaseSpec:
    """Which base learner to stand on.

    Attributes:
        name: registered name of the learner (``ZeroshotCLIP``, ``CoOp`` ...).
        directory: its run folder; unused by ZeroshotCLIP.
        epoch: epoch to load; 0 for the last that was saved.
        template: prompt of ZeroshotCLIP, with ``{}`` for the class name.
        class_token_position: CoOp's; its checkpoint does not say.
    """

    name: str = "ZeroshotCLIP"
    directory: str = ""
    epoch: int = 0
    template: str = "a photo of a {}."
    class_token_position: str = "end"


class BaseModel(nn.Module):
    """Frozen CLIP with whatever prompts a base learner tuned.

    Subclasses override :meth:`_text_features` (text prompts) and may override :meth:`encode_image` (visual prompts),
    :meth:`project` (a projection behind CLIP's own) and :meth:`text_features_for` (texts that depend on the image).
    """

    def __init__(self, prompted: PromptedCLIP):
        super().__init__()
        self.prompted = prompted
        self.classnames: list[str] = []
        self.register_buffer("text_features", torch.zeros(0, prompted.embed_dim), persistent=False)  # (C, D) normalised

    @torch.no_grad()
    def set_classes(self, classnames: Sequence[str]) -> None:
        """Compute T for these classes; every later call speaks of them."""
        self.classnames = list(classnames)
        self.text_features = self.encode_classes(classnames)

    @torch.no_grad()
    def encode_classes(self, classnames: Sequence[str]) -> Tensor:
        """T ``(C, D)`` fp32, normalised, without changing the classes in use."""
        return normalize(self._text_features(list(classnames)).float(), dim=-1)

    def _text_features(self, classnames: list[str]) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images; the feature is what :meth:`project` makes of the class token."""
        return self.prompted.encode_image(images)

    def project(self, cls: Tensor) -> Tensor:
        """Joint-space feature ``(..., D)`` fp32, not normalised, of class tokens ``(..., Dv)``; differentiable."""
        visual = self.prompted.clip.visual
        return visual.ln_post(cls.to(self.prompted.dtype)).float() @ visual.proj.float()

    def text_features_for(self, z: Tensor) -> Tensor:
        """T ``(C, D)``, or ``(B, C, D)`` where the texts depend on the image feature z ``(B, D)``."""
        return self.text_features

    @property
    def logit_scale(self) -> Tensor:
        """s, a scalar."""
        return self.prompted.logit_scale

    @property
    def embed_dim(self) -> int:
        """D of the space in which z and T meet."""
        return self.prompted.embed_dim

    def logits(self, z: Tensor) -> Tensor:
        """Base logits l0 = s z T^T ``(B, C)`` fp32 of normalised features z ``(B, D)``."""
        return class_logits(z, self.text_features_for(z), self.logit_scale)

    def digest(self) -> str:
        """SHA-256 of everything that shapes the features: equal digests, equal base models."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, value in sorted({**dict(self.named_parameters()), **self._fingerprinted()}.items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _fingerprinted(self) -> dict[str, Tensor]:
        """Tensors besides the parameters that shape the features."""
        return {}


def class_logits(z: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """s z T^T ``(B, C)`` in fp32 for T ``(C, D)`` or ``(B, C, D)``."""
    z, text_features = z.float(), text_features.float()
    scores = z @ text_features.t() if text_features.dim() == 2 else torch.einsum("bd,bcd->bc", z, text_features)
    return logit_scale.float() * scores


class ZeroshotCLIP(BaseModel):
    """CLIP with a hand-written prompt."""

    def __init__(self, prompted: PromptedCLIP, template: str):
        super().__init__(prompted)
        if "{}" not in template:
            raise ValueError(f'the prompt template must hold "{{}}" for the class name, got "{template}"')
        self.template = template

    def _text_features(self, classnames: list[str]) -> Tensor:
        return self.prompted.text_features([self.template.format(plain_name(name)) for name in classnames])

    def _fingerprinted(self) -> dict[str, Tensor]:
        return {"template": torch.tensor([ord(letter) for letter in self.template])}


class CoOp(BaseModel):
    """CLIP with CoOp's context vectors before (or around) the class name."""

    def __init__(self, prompted: PromptedCLIP, context: Tensor, class_token_position: str = "end"):
        super().__init__(prompted)
        self.class_token_position = class_token_position
        self.register_buffer("context", context.float(), persistent=False)  # (n, Dt)

    def _text_features(self, classnames: list[str]) -> Tensor:
        num_context = len(self.context)
        words = " ".join(["X"] * num_context)  # what stands there does not matter, only how many tokens
        tokens = class_tokens(self.prompted, classnames, words, num_context, self.class_token_position)
        prompts = place_context(self.context, tokens.prefix, tokens.suffix, tokens.order)
        return self.prompted.encode_text(prompts, tokens.eot)

    def _fingerprinted(self) -> dict[str, Tensor]:
        return {"context": self.context, "position": torch.tensor([ord(c) for c in self.class_token_position])}


def _load_zeroshot(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    return ZeroshotCLIP(prompted, spec.template)


def _load_coop(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    path, state = _learner_state(spec, "prompt_learner")
    context = _entry(state, "ctx", path)
    if context.dim() != 2:
        raise ValueError(
            f'"{path}" holds one context for each of {len(context)} classes (CSC True), which no new class has; '
            "train the CoOp base with TRAINER.COOP.CSC False"
        )
    _check_width(context, prompted.text_width, "ctx", path)
    return CoOp(prompted, context, spec.class_token_position)


BASE_LEARNERS: dict[str, Callable[[PromptedCLIP, BaseSpec], BaseModel]] = {
    "ZeroshotCLIP": _load_zeroshot,
    "CoOp": _load_coop,
}


def build_base(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """The frozen base model that ``spec`` names.

    Raises:
        ValueError: unknown learner, or a checkpoint that does not fit it or this CLIP.
        FileNotFoundError: the checkpoint is not there.
    """
    if spec.name not in BASE_LEARNERS:
        raise ValueError(f'TRAINER.CAPT.BASE.NAME must be one of {sorted(BASE_LEARNERS)}, got "{spec.name}"')
    if spec.name != "ZeroshotCLIP" and not spec.directory:
        raise ValueError(f"TRAINER.CAPT.BASE.DIR must name the run folder of the {spec.name} base, got nothing")
    return BASE_LEARNERS[spec.name](prompted, spec).eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------------
# What the loaders share
# --------------------------------------------------------------------------------------------------------------------


def _learner_state(spec: BaseSpec, model_name: str) -> tuple[str, dict[str, Tensor]]:
    path = checkpoint_file(spec.directory, model_name, spec.epoch)
    state = read_checkpoint(path)["state_dict"]
    return path, {key.removeprefix("module."): value for key, value in state.items()}


def _entry(state: dict[str, Tensor], key: str, path: str) -> Tensor:
    if key not in state:
        raise ValueError(f'"{path}" holds no "{key}" but {sorted(state)[:6]}; is it a checkpoint of this base learner?')
    return state[key].float()


def _check_width(value: Tensor, width: int, key: str, path: str) -> None:
    if value.shape[-1] != width:
        raise ValueError(
            f'"{key}" of "{path}" has width {value.shape[-1]}, this CLIP has {width}; '
            "set MODEL.BACKBONE.NAME to the backbone that the base was trained on"
        )
