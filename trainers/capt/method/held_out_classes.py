"""Choosing on held-out classes: the one way in which CAPT chooses the strength of what is to help new classes (D).

Whatever is chosen by the classes that it was fitted to fits these classes alone. So a run plays base-to-new with its
own base classes: it halves them at random, fits on one half, and measures on the other, in the other's own label space,
what that changes. No test image, no new class and no validation image is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["HeldOutChoice", "halvings", "held_out_gains", "one_standard_error"]

LEAST_CLASSES = 4  # two to fit on and two to measure on
MOST_HALVINGS = 20
ENOUGH = 1000  # classes held out, over all halvings; more classes need fewer halvings

Half = tuple[Tensor, Tensor]  # classes to fit on, classes to measure on; int64, ascending


def halvings(classnames: Sequence[str], generator: torch.Generator) -> list[Half]:
    """Random halves of C classes, each taken both ways; none where there are fewer than four classes.

    With an odd number of classes one half has one more. The halves are drawn among sorted names, so that the order of
    the classes changes nothing.

    Args:
        classnames: C names.
        generator: CPU generator.
    """
    num_classes = len(classnames)
    if num_classes < LEAST_CLASSES:
        return []
    by_name = torch.tensor(sorted(range(num_classes), key=lambda index: classnames[index]))
    found: list[Half] = []
    for _ in range(max(1, min(MOST_HALVINGS, ENOUGH // num_classes))):
        order = by_name[torch.randperm(num_classes, generator=generator)]
        a, b = (half.sort().values for half in (order[: num_classes // 2], order[num_classes // 2 :]))
        found += [(a, b), (b, a)]
    return found


def held_out_gains(
    label: Tensor, num_classes: int, halves: Sequence[Half], fit_and_compare: Callable[[Half, Half], Tensor]
) -> Tensor:
    """Mean gain ``(S, C)`` in accuracy, in points, of S strengths on each class while it was held out.

    Args:
        label: ``(n,)`` labels of the images to measure on.
        num_classes: C.
        halves: see :func:`halvings`.
        fit_and_compare: ``(classes, rows)`` to ``(S, n_held)``: how much better each held-out image is answered, +1
            right instead of wrong, -1 wrong instead of right. ``classes`` are those to fit on and to measure on,
            ``rows`` the positions of their images in ``label``.
    """
    total, times = torch.zeros(0), torch.zeros(num_classes, device=label.device)
    for classes in halves:
        fit_rows, held_rows = (torch.isin(label, half.to(label.device)).nonzero().squeeze(1) for half in classes)
        better = fit_and_compare(classes, (fit_rows, held_rows))  # (S, n_held)
        held = label[held_rows]
        images = torch.bincount(held, minlength=num_classes).clamp_min(1)
        of_class = better.new_zeros(len(better), num_classes).index_add_(1, held, better) / images
        total = of_class if not len(total) else total + of_class
        times += torch.isin(torch.arange(num_classes, device=label.device), held)
    return 100 * total / times.clamp_min(1)


def one_standard_error(gains: Tensor) -> int | None:
    """The first of S strengths, ordered from the most cautious on, that is not clearly worse than the best.

    Not clearly: its mean gain is above 0, and the best's is greater by no more than one standard error of their
    difference over the classes, which are what a new class is another draw of. None where no mean gain is above 0.

    Args:
        gains: ``(S, C)``, see :func:`held_out_gains`.
    """
    mean = gains.mean(dim=1)
    best = int(mean.argmax())
    if mean[best] <= 0:
        return None
    behind = gains[best] - gains  # (S, C)
    error = behind.std(dim=1) / gains.shape[1] ** 0.5
    is_good = (mean > 0) & (behind.mean(dim=1) <= error)
    return int(is_good.nonzero()[0])


@dataclass(frozen=True)
class HeldOutChoice:
    """What held-out classes say of the strengths that there are to choose from.

    Attributes:
        strengths: S of them, from the most cautious on.
        chosen: which one; None for none at all.
        gain: mean gain over held-out classes, in points, of the chosen one; of the best where none is chosen.
        error: its standard error over the classes.
        num_classes: classes that took part; 0 where there are too few to hold any out.
    """

    strengths: tuple[float, ...]
    chosen: int | None
    gain: float
    error: float
    num_classes: int

    @classmethod
    def of(cls, strengths: Sequence[float], gains: Tensor | None) -> HeldOutChoice:
        """By the one-standard-error rule.

        Args:
            strengths: S of them, from the most cautious on.
            gains: ``(S, C)``; None where there are too few classes.
        """
        if gains is None:
            return cls(tuple(strengths), None, 0.0, 0.0, 0)
        chosen = one_standard_error(gains)
        row = gains[int(gains.mean(dim=1).argmax()) if chosen is None else chosen]
        return cls(tuple(strengths), chosen, float(row.mean()), float(row.std() / len(row) ** 0.5), len(row))

    @property
    def strength(self) -> float | None:
        """The chosen strength; None for none at all."""
        return None if self.chosen is None else self.strengths[self.chosen]

    def __str__(self) -> str:
        if not self.num_classes:
            return f"none, fewer than {LEAST_CLASSES} classes cannot be held out from one another"
        gain = f"{self.gain:+.2f} ± {self.error:.2f} points on {self.num_classes} held-out classes"
        return f"none, the best gives {gain}" if self.chosen is None else f"{self.strength:.3g}, {gain}"

    def to_dict(self) -> dict[str, float | int | None]:
        """For a run's record."""
        return {
            "strength": self.strength,
            "held_out_gain": self.gain,
            "held_out_error": self.error,
            "held_out_classes": self.num_classes,
        }
