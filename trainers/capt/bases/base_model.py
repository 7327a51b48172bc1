"""What CAPT asks of the frozen model that it stands on, whatever base learner tuned it.

A base model answers three questions: the features of an image, the text features T of a list of class names, and the
base logits l0 = s z T^T. Nothing of it is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..backbone.digest import Stamp, stamp_of
from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from ..run.files import checkpoint_file, read_checkpoint

__all__ = ["BaseModel", "BaseSpec", "check_width", "class_logits", "entry", "learner_state", "options_of"]


@dataclass(frozen=True)
class BaseSpec:
    """Which base learner to stand on.

    Attributes:
        name: registered name of the learner (``ZeroshotCLIP``, ``CoOp`` ...).
        directory: its run folder; unused by ZeroshotCLIP.
        epoch: epoch to load; 0 for the last that was saved.
        template: prompt of ZeroshotCLIP, with ``{}`` for the class name.
        class_token_position: CoOp's; its checkpoint does not say.
        context_words: CTX_INIT of MaPLe, IVLP and PromptSRC; tokens of it beyond N_CTX stay in their prompts.
        teacher_directory: run folder, or checkpoint, of PromptKD's teacher.
        teacher_backbone: the teacher's CLIP.
        options: what is in no checkpoint, ``TRAINER.CAPT.BASE.OPTIONS``; see :func:`options_of`.
        dataset: ``DATASET.NAME`` of the run.
        config: all of the run's configuration; None where there is no run.
    """

    name: str = "ZeroshotCLIP"
    directory: str = ""
    epoch: int = 0
    template: str = "a photo of a {}."
    class_token_position: str = "end"
    context_words: str = "a photo of a"
    teacher_directory: str = ""
    teacher_backbone: str = "ViT-L/14"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dataset: str = ""
    config: Mapping[str, Any] | None = field(default=None, hash=False, repr=False)


class BaseModel(nn.Module):
    """Frozen CLIP with whatever prompts a base learner tuned.

    Subclasses override :meth:`_text_features` (text prompts) and may override :meth:`encode_image` (visual prompts),
    :meth:`project` (a projection behind CLIP's own), :meth:`text_features_for` (texts that depend on the image) and
    :meth:`choose_half` (features that depend on whether the classes are those of the learner's training).

    Attributes:
        classnames: the C classes in use.
        trained_on: the classes that the learner was trained on; None as long as these are the classes in use.
        options: what :meth:`digest` counts besides the weights.
        text_features: T ``(C, D)``, normalised.
    """

    text_features: Tensor

    def __init__(self, prompted: PromptedCLIP):
        super().__init__()
        self.prompted = prompted
        self.classnames: list[str] = []
        self._digest: tuple[tuple[Stamp, list[tuple[str, bytes]]], str] | None = None
        self.trained_on: list[str] | None = None
        self.options: dict[str, Any] = {}
        self.register_buffer("text_features", torch.zeros(0, prompted.embed_dim), persistent=False)

    @torch.no_grad()
    def set_classes(self, classnames: Sequence[str]) -> None:
        """Compute T for these classes; every later call speaks of them."""
        self.classnames = list(classnames)
        self.choose_half(self.classnames, self.classnames if self.trained_on is None else self.trained_on)
        self.text_features = self.encode_classes(classnames)

    def choose_half(self, classnames: list[str], trained_on: list[str]) -> None:
        """Hear which classes are to be served, and which the learner was trained on; most do the same for all.

        Called before T is computed and before images of these classes are encoded.
        """

    @torch.no_grad()
    def encode_classes(self, classnames: Sequence[str]) -> Tensor:
        """T ``(C, D)`` fp32, normalised, without changing the classes in use."""
        return normalize(self._text_features(list(classnames)).float(), dim=-1)

    def _text_features(self, classnames: list[str]) -> Tensor:
        raise NotImplementedError

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Normalised features ``(n, D)`` fp32 of plain sentences, by the frozen text tower without prompts."""
        return self.prompted.text_features(sentences)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images; the feature is what :meth:`project` makes of the class token."""
        return self.prompted.encode_image(images)

    @property
    def tower(self) -> PromptedCLIP | None:
        """The frozen CLIP whose own features :meth:`encode_image` gives; None where a base learner tuned them."""
        return self.prompted if type(self).encode_image is BaseModel.encode_image else None

    def project(self, cls: Tensor) -> Tensor:
        """Joint-space feature ``(..., D)`` fp32, not normalised, of class tokens ``(..., Dv)``; differentiable.

        It gets what :meth:`encode_image` gave as ``cls``, with the class token, the first Dv numbers, moved; a base of
        several features puts what the others need behind it.
        """
        visual = self.prompted.vit
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

    def logits(self, z: Tensor, moved: Tensor | None = None) -> Tensor:
        """Base logits l0 = s z T^T ``(B, C)`` fp32 of normalised features z ``(B, D)``.

        With ``moved`` ``(B, D)`` they are those of the features that z was moved to; texts that depend on the image
        still follow z.
        """
        return class_logits(z if moved is None else moved, self.text_features_for(z), self.logit_scale)

    def digest(self) -> str:
        """SHA-256 of all weights: equal digests, equal base models.

        Hand-written words around the class names are left out, since another data set has others. CLIP's own weights
        count in half precision, so that a run in fp16 on a GPU is the same base model as in fp32 on a CPU. It is
        remembered until a weight changes, by torch's own count of changes: what is written past it, through ``.data``,
        is not seen.
        """
        weights, others = dict(self.named_parameters()), self._counted()
        stamp = stamp_of(weights.values()), [(name, _bytes(name, value)) for name, value in others.items()]
        if self._digest is None or self._digest[0] != stamp:
            digest = hashlib.sha256(type(self).__name__.encode() + self.prompted.design.encode())
            for name, value in sorted({**weights, **others}.items()):
                digest.update(name.encode())
                digest.update(_bytes(name, value))
            self._digest = stamp, digest.hexdigest()
        return self._digest[1]

    def _fingerprinted(self) -> dict[str, Tensor]:
        """Tensors besides the parameters that shape the features."""
        return {}

    def _counted(self) -> dict[str, Tensor]:
        """What :meth:`digest` counts besides the parameters."""
        options = json.dumps(self.options, sort_keys=True).encode() if self.options else b""
        return {**self._fingerprinted(), **({"options": torch.tensor(list(options))} if options else {})}


def _bytes(name: str, value: Tensor) -> bytes:
    value = value.detach().half() if "prompted." in name else value.detach().float()
    return value.cpu().contiguous().numpy().tobytes()


def class_logits(z: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """s z T^T ``(B, C)`` in fp32 for T ``(C, D)`` or ``(B, C, D)``."""
    z, text_features = z.float(), text_features.float()
    scores = z @ text_features.t() if text_features.dim() == 2 else torch.einsum("bd,bcd->bc", z, text_features)
    return logit_scale.float() * scores


def learner_state(spec: BaseSpec, model_name: str) -> tuple[str, dict[str, Tensor]]:
    """Path and weights of the checkpoint that ``spec`` names, of the registered model ``model_name``.

    Raises:
        ValueError: ``spec`` names no run folder, or the file is damaged.
        FileNotFoundError: the folder holds no such checkpoint.
    """
    if not spec.directory:
        raise ValueError(f"TRAINER.CAPT.BASE.DIR must name the run folder of the {spec.name} base, got nothing")
    path = checkpoint_file(spec.directory, model_name, spec.epoch)
    state = read_checkpoint(path)["state_dict"]
    return path, {key.removeprefix("module."): value for key, value in state.items()}


def options_of(spec: BaseSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``spec``, with ``defaults`` for those that it leaves out.

    Raises:
        ValueError: an option that the learner does not have, or of another type than its default.
    """
    unknown = sorted(set(spec.options) - set(defaults))
    if unknown:
        raise ValueError(f"TRAINER.CAPT.BASE.OPTIONS of {spec.name} has {unknown}, which is none of {sorted(defaults)}")
    found = {**defaults, **spec.options}
    for key, default in defaults.items():
        value = list(found[key]) if isinstance(found[key], tuple) else found[key]
        value = float(value) if isinstance(default, float) and type(value) is int else value
        if type(value) is not type(default):
            raise ValueError(f"TRAINER.CAPT.BASE.OPTIONS.{key} of {spec.name} must be like {default!r}, got {value!r}")
        found[key] = value
    return found


def entry(state: dict[str, Tensor], key: str, path: str) -> Tensor:
    """``state[key]`` in fp32; a ValueError that names the file if it is missing."""
    if key not in state:
        raise ValueError(f'"{path}" holds no "{key}" but {sorted(state)[:6]}; is it a checkpoint of this base learner?')
    return state[key].float()


def check_width(value: Tensor, width: int, key: str, path: str) -> None:
    """Refuse prompts ``(..., width)`` of another CLIP's width."""
    if value.shape[-1] != width:
        raise ValueError(
            f'"{key}" of "{path}" has width {value.shape[-1]}, this CLIP has {width}; '
            "set MODEL.BACKBONE.NAME to the backbone that the base was trained on"
        )
