"""Whether a run has a systematic shift, and how far it goes: by classes that it was not fitted to (D)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..bases.base_model import BaseModel
from ..run.feature_cache import ViewBatch
from .held_out_classes import Half, HeldOutChoice, halvings, held_out_gains
from .systematic import SystematicShift, fit_shift

__all__ = ["PENALTIES", "choose_penalty", "set_shift"]

PENALTIES = tuple(16 * 3.0**-step for step in range(9))  # from the most cautious on: 16 to 0.0024
MAX_CELLS = 2**21  # images by classes in a fit that only serves the choice; of more every second, third ... is left out


@torch.no_grad()
def set_shift(
    systematic: SystematicShift,
    base: BaseModel,
    views: Iterable[ViewBatch],
    judge: BaseModel,
    judged: Iterable[ViewBatch],
    seed: int,
) -> HeldOutChoice:
    """Fit the shift with the penalty that held-out classes choose, say which, and return the choice.

    The penalty is chosen by zero-shot CLIP: a base learner that was tuned on these shots errs less on them than on
    other images of whatever class, and would be found in no need of a shift.

    Args:
        systematic: takes the shift.
        base: the base model, serving the run's classes. Where its texts depend on the image, v is fitted to those for
            no image.
        views: features of the run's shots by ``base``, in all the views that are kept.
        judge: zero-shot CLIP, serving the same classes.
        judged: features of the shots by ``judge``, in the same views.
        seed: of the halves.
    """
    shift, scale = systematic.shift, float(base.logit_scale)
    z, label, is_plain = _features(judged, shift.device)
    generator = torch.Generator().manual_seed(seed)
    choice = choose_penalty(z, label, is_plain, judge.text_features, base.classnames, scale, generator)
    if choice.strength is not None:
        z, label, _ = _features(views, shift.device)
        shift.copy_(fit_shift(z, label, base.text_features, [choice.strength], scale)[0])
    print(f"Systematic shift: penalty {choice}")
    if choice.strength is not None and not shift.any():
        print("Systematic shift: its fit found none, the features stay as they are")
    return choice


def _features(views: Iterable[ViewBatch], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """z ``(n, D)``, labels ``(n,)`` and which are under the test transform ``(n,)`` of all views."""
    parts = [(batch.z.to(device), batch.label.to(device), batch.view.to(device) == 0) for batch in views]
    z, label, is_plain = (torch.cat(part) for part in zip(*parts, strict=True))
    return z, label, is_plain


@torch.no_grad()
def choose_penalty(
    z: Tensor,
    label: Tensor,
    is_plain: Tensor,
    texts: Tensor,
    classnames: Sequence[str],
    scale: float,
    generator: torch.Generator,
) -> HeldOutChoice:
    """The penalty of :func:`fit_shift` by held-out classes.

    Args:
        z: ``(n, D)`` normalised features by a model that was not fitted to these images.
        label: ``(n,)``.
        is_plain: ``(n,)`` bool, views under the test transform. The shift is fitted to all views, and measured on
            these, which are what a test sees.
        texts: ``(C, D)`` normalised T.
        classnames: C names.
        scale: CLIP's s.
        generator: CPU generator of the halves.
    """
    halves = halvings(classnames, generator)
    if not halves:
        return HeldOutChoice.of(PENALTIES, None)

    plain, plain_label = z[is_plain], label[is_plain]

    def fit_and_compare(classes: Half, rows: Half) -> Tensor:
        (fitted, held), held_rows = classes, rows[1]
        fit_rows = torch.isin(label, fitted.to(label.device)).nonzero().squeeze(1)
        fit_rows = fit_rows[:: -(-len(fit_rows) * len(fitted) // MAX_CELLS)]
        place = torch.searchsorted(fitted.to(label.device), label[fit_rows])
        shift = fit_shift(z[fit_rows], place, texts[fitted], PENALTIES, scale)  # (S, D)
        truth = torch.searchsorted(held.to(label.device), plain_label[held_rows])
        before = plain[held_rows] @ texts[held].t()  # (n_held, C_held)
        biases = shift @ texts[held].t()  # (S, C_held); a table of images and classes for one strength at a time
        after = torch.stack([(before + bias).argmax(dim=-1) for bias in biases])  # (S, n_held)
        return (after == truth).float() - (before.argmax(dim=-1) == truth).float()

    return HeldOutChoice.of(PENALTIES, held_out_gains(plain_label, len(texts), halves, fit_and_compare))
