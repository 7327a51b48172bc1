"""What CAPT asks of the frozen model that it stands on, whatever base learner tuned it.

A base model answers three questions: the features of an image, the text features T of a list of class names, and the
base logits l0 = s z T^T. Nothing of it is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from ..run.files import checkpoint_file, read_checkpoint

__all__ = ["BaseModel", "BaseSpec", "check_width", "class_logits", "entry", "learner_state"]


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
    """

    name: str = "ZeroshotCLIP"
    directory: str = ""
    epoch: int = 0
    template: str = "a photo of a {}."
    class_token_position: str = "end"
    context_words: str = "a photo of a"
    teacher_directory: str = ""
    teacher_backbone: str = "ViT-L/14"


class BaseModel(nn.Module):
    """Frozen CLIP with whatever prompts a base learner tuned.

    Subclasses override :meth:`_text_features` (text prompts) and may override :meth:`encode_image` (visual prompts),
    :meth:`project` (a projection behind CLIP's own) and :meth:`text_features_for` (texts that depend on the image).
    """

    text_features: Tensor  # (C, D) normalised

    def __init__(self, prompted: PromptedCLIP):
        super().__init__()
        self.prompted = prompted
        self.classnames: list[str] = []
        self.register_buffer("text_features", torch.zeros(0, prompted.embed_dim), persistent=False)

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

    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Normalised features ``(n, D)`` fp32 of plain sentences, by the frozen text tower without prompts."""
        return self.prompted.text_features(sentences)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images; the feature is what :meth:`project` makes of the class token."""
        return self.prompted.encode_image(images)

    def project(self, cls: Tensor) -> Tensor:
        """Joint-space feature ``(..., D)`` fp32, not normalised, of class tokens ``(..., Dv)``; differentiable."""
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
        count in half precision, so that a run in fp16 on a GPU is the same base model as in fp32 on a CPU.
        """
        digest = hashlib.sha256(type(self).__name__.encode() + self.prompted.design.encode())
        for name, value in sorted({**dict(self.named_parameters()), **self._fingerprinted()}.items()):
            digest.update(name.encode())
            value = value.detach().half() if "prompted." in name else value.detach().float()
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _fingerprinted(self) -> dict[str, Tensor]:
        """Tensors besides the parameters that shape the features."""
        return {}


def class_logits(z: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """s z T^T ``(B, C)`` in fp32 for T ``(C, D)`` or ``(B, C, D)``."""
    z, text_features = z.float(), text_features.float()
    scores = z @ text_features.t() if text_features.dim() == 2 else torch.einsum("bd,bcd->bc", z, text_features)
    return logit_scale.float() * scores


def learner_state(spec: BaseSpec, model_name: str) -> tuple[str, dict[str, Tensor]]:
    """Path and weights of the checkpoint that ``spec`` names, of the registered model ``model_name``."""
    path = checkpoint_file(spec.directory, model_name, spec.epoch)
    state = read_checkpoint(path)["state_dict"]
    return path, {key.removeprefix("module."): value for key, value in state.items()}


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
