"""How far the corrections may move an image: the one number that CAPT fits to a run without gradients (D).

Cross-entropy at CLIP's own temperature is no judge of it. CLIP is too sure of itself on images unlike its own, so that
a correction which repairs more answers than it breaks still raises the loss, and far too unsure on images like its own.
So the temperature is fitted beside the gain, and thrown away.

The shots are also what images are compared by, which flatters large gains, the more the fewer shots there are. So the
smallest gain is taken that is as good as the best but for two standard errors.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..bases.base_model import class_logits
from ..run.feature_cache import ViewBatch
from .experts import move
from .model import CAPTModel

__all__ = ["SHARES", "fit_gain", "set_gain", "smallest_as_good"]

ERRORS = 2.0  # standard errors that a smaller gain may be worse by
SHARES = (0.0, 1 / 24, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 5 / 12, 1 / 2, 2 / 3, 5 / 6, 1.0)  # of the largest gain
TEMPERATURES = tuple(2 ** (step / 4) for step in range(-8, 11))  # 0.25 to 5.7


@torch.no_grad()
def fit_gain(model: CAPTModel, views: Iterable[ViewBatch], bank_index: Tensor, largest: float) -> tuple[float, float]:
    """The least gain under which the run's shots are likely, each corrected by all of the bank but itself.

    Args:
        model: bound to the run's classes and to its bank.
        views: one view of every training image.
        bank_index: ``(num_images,)`` the bank's index of each image.
        largest: of the gains to choose from, 0 to this.

    Returns:
        The gain, and the temperature that goes with it.
    """
    gains = [share * largest for share in SHARES]
    losses, expert = [], model.refiner.expert
    for batch in views:
        batch = batch.to(bank_index.device)
        output = model(batch.z, batch.cls, batch.tokens, query_index=bank_index[batch.index])
        shifted = model.refiner.systematic(batch.z)
        _, correction = expert.correct(shifted, output.samples)
        rows = []
        for gain in gains:
            logits = class_logits(move(shifted, gain * correction), output.texts, model.base.logit_scale)
            rows.append(torch.stack([cross_entropy(logits / t, batch.label, reduction="none") for t in TEMPERATURES]))
        losses.append(torch.stack(rows))
    loss = torch.cat(losses, dim=2)  # (gains, temperatures, images)
    place = loss.mean(dim=2).argmin(dim=1)  # the temperature of each gain
    chosen = smallest_as_good(loss[torch.arange(len(gains)), place])
    return gains[chosen], TEMPERATURES[int(place[chosen])]


def smallest_as_good(loss: Tensor) -> int:
    """The first row of losses ``(gains, images)`` that is worse than the best by two standard errors at most.

    The errors are those of the paired difference over images.
    """
    beyond = loss - loss[loss.mean(dim=1).argmin()]
    error = beyond.std(dim=1, correction=0) / loss.shape[1] ** 0.5
    return int((beyond.mean(dim=1) <= ERRORS * error).nonzero()[0])


@torch.no_grad()
def set_gain(model: CAPTModel, views: Iterable[ViewBatch], bank_index: Tensor, largest: float) -> dict[str, float]:
    """Give the expert the gain that :func:`fit_gain` chooses, say which, and return it for the run's record."""
    gain, temperature = fit_gain(model.eval(), views, bank_index, largest)
    model.refiner.expert.gain.fill_(gain)
    print(f"Gain of the corrections: {gain:.3g} of at most {largest:g} (temperature {temperature:.2f})")
    return {"gain": gain, "largest": largest, "temperature": temperature}
