"""Any trained model as a base model, by three callables: for a method that this package does not know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from .base_model import BaseModel

__all__ = ["ModelAsBase"]


class ModelAsBase(BaseModel):
    """A base model whose three answers are callables; the model that they call is frozen here and counts in the digest.

    Args:
        prompted: the frozen CLIP; it reads the sentences about pairs of classes.
        model: what was trained, a Dassl trainer's model for one.
        encode_image: pixels ``(B, 3, H, W)`` to features, class and patch tokens.
        encode_texts: C class names, any, to text features ``(C, D)``.
        project: class tokens ``(..., Dv)`` to joint-space features ``(..., D)``, the last step of ``encode_image``.
        logit_scale: s; None for CLIP's own.

    Example::

        def load(prompted, spec):
            model = MyCustomCLIP(prompted.clip)
            model.prompt_learner.load_state_dict(capt.learner_state(spec, "prompt_learner")[1])
            return capt.ModelAsBase(prompted, model, prompted.encode_image, model.text_features, model.project)
    """

    def __init__(
        self,
        prompted: PromptedCLIP,
        model: nn.Module,
        encode_image: Callable[[Tensor], ImageFeatures],
        encode_texts: Callable[[list[str]], Tensor],
        project: Callable[[Tensor], Tensor],
        logit_scale: float | None = None,
    ):
        super().__init__(prompted)
        self.model = model
        self._image, self._texts, self._project = encode_image, encode_texts, project
        self.options = {} if logit_scale is None else {"logit_scale": float(logit_scale)}

    def _text_features(self, classnames: list[str]) -> Tensor:
        return self._texts(classnames)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of ``(B, 3, H, W)`` images, by the callable."""
        return self._image(images)

    def project(self, cls: Tensor) -> Tensor:
        """Joint-space features ``(..., D)`` fp32 of class tokens ``(..., Dv)``, by the callable."""
        return self._project(cls).float()

    @property
    def logit_scale(self) -> Tensor:
        """s, a scalar."""
        own = self.prompted.logit_scale
        return own.new_tensor(self.options["logit_scale"]) if "logit_scale" in self.options else own

    def _fingerprinted(self) -> dict[str, Tensor]:
        return {f"model.{name}": value for name, value in self.model.named_buffers()}
