"""What is common to all confusions: one vector v that moves every image feature, z' = norm(z + v) (D).

A CLIP that calls a mug a cup and a stopwatch a clock has a bias that is no matter of these classes: it prefers the
plain name. z + v adds v T_c to the score of class c, so v is a bias of the classes that follows from their texts alone.
It counts no classes, and moves those that nobody trained on as it moves the others. It has D numbers, and is kept only
where classes that it was not fitted to gain by it (:mod:`.held_out_classes`).

Shapes: n images, C classes, D joint width, S strengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .experts import move

__all__ = ["SystematicShift", "fit_shift"]

MAX_STEPS = 30
MAX_HALVINGS = 40  # where tau starts far too large the loss is all but straight, and a step millions too long
TOLERANCE = 1e-8  # of the loss
TEMPERATURE_PENALTY = 1e-6  # on (tau / s - 1)^2 / 2; finite also where the shots are told apart without an error
MAX_CELLS = 2**24  # numbers in a table of images and classes (64 MB)
CELLS_AT_A_TIME = 2**20  # of them that one pass goes through in float64; some six such tables are held (50 MB)


class SystematicShift(nn.Module):
    """z' = norm(z + v); with v = 0, where nothing was chosen, z' is z to the last bit.

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("shift", torch.zeros(dim))  # v, fitted and not trained

    shift: Tensor

    def forward(self, z: Tensor) -> Tensor:
        """Moved features ``(B, D)`` of normalised ones."""
        return move(z, self.shift)


@torch.no_grad()
def fit_shift(z: Tensor, label: Tensor, texts: Tensor, penalties: Sequence[float], scale: float) -> Tensor:
    """The shift v under which the labels are likeliest, for each of S penalties.

    Minimises the mean over the images of the cross-entropy of tau (z + v) T^T, plus penalty / (2 C) |tau v|^2, over v
    and the temperature tau, which is thrown away. In tau and w = tau v the loss is convex, so Newton's method finds its
    one minimum, for each penalty from that of the one before; the curvature of w is that of C class biases, T^T M T.
    The penalty counts per class, since classes and not images are what v is common to. Of very many images every
    second, third ... is left out, so that a table of them and the classes has no more than ``MAX_CELLS`` numbers (D).

    Args:
        z: ``(n, D)`` normalised features.
        label: ``(n,)``.
        texts: ``(C, D)`` normalised T, C >= 2.
        penalties: S numbers above 0.
        scale: tau to start from, CLIP's s.

    Returns:
        v ``(S, D)`` fp32.
    """
    stride = -(-len(z) * len(texts) // MAX_CELLS)
    axes = _axes(texts)  # (D, k)
    problem = _Problem(
        cosines=z[::stride] @ texts.t(),
        label=label[::stride],
        design=(texts - texts.mean(dim=0)).double() @ axes,
        scale=scale,
    )
    theta = axes.new_zeros(1 + axes.shape[1])  # tau, then w along the axes
    theta[0] = scale
    shifts = []
    for penalty in penalties:
        theta = problem.minimum(penalty / len(texts), theta)
        shifts.append(axes @ theta[1:] / theta[0])
    return torch.stack(shifts).float()


def _axes(texts: Tensor) -> Tensor:
    """Orthonormal axes ``(D, k)`` of the differences between the texts; v along anything else changes no answer."""
    _, length, axes = torch.linalg.svd((texts - texts.mean(dim=0)).double(), full_matrices=False)
    return axes[length > 1e-6 * length[0].clamp_min(1e-12)].t()


@dataclass(frozen=True)
class _Problem:
    """The convex problem in theta = (tau, w) ``(k + 1,)``, in float64, some images at a time.

    Attributes:
        cosines: ``(n, C)`` fp32 z T^T.
        label: ``(n,)``.
        design: ``(C, k)``, what one unit of w along each axis adds to a class.
        scale: s, which tau is held near.
    """

    cosines: Tensor
    label: Tensor
    design: Tensor
    scale: float

    def minimum(self, penalty: float, theta: Tensor) -> Tensor:
        """By Newton's method from ``theta`` on; ``penalty`` is on |w|^2 / 2."""
        value = self.loss(theta, penalty)
        for _ in range(MAX_STEPS):
            curvature, slope = self.curvature_and_slope(theta, penalty)
            step = torch.linalg.solve(curvature, slope)
            theta, lower = self._line_search(theta, step, value, penalty)
            if value - lower < TOLERANCE:
                break
            value = lower
        return theta

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Cosines ``(b, C)`` in float64 and labels ``(b,)`` of some images after the other."""
        rows = max(1, CELLS_AT_A_TIME // self.cosines.shape[1])
        for cosines, label in zip(self.cosines.split(rows), self.label.split(rows), strict=True):
            yield cosines.double(), label

    def logits(self, theta: Tensor, cosines: Tensor) -> Tensor:
        """``(b, C)``; linear in theta."""
        return torch.addcmul(self.design @ theta[1:], theta[0], cosines)

    def loss(self, theta: Tensor, penalty: float) -> float:
        """Mean cross-entropy and both penalties."""
        parts = [cross_entropy(self.logits(theta, part), label, reduction="sum") for part, label in self.parts()]
        fit = torch.stack(parts).sum() / len(self.label) + 0.5 * TEMPERATURE_PENALTY * (theta[0] / self.scale - 1) ** 2
        return float(fit + 0.5 * penalty * theta[1:].square().sum())

    def curvature_and_slope(self, theta: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Second derivatives ``(k + 1, k + 1)`` and first ``(k + 1,)`` of the loss."""
        n, num_classes = self.cosines.shape
        truth = torch.bincount(self.label, minlength=num_classes)  # (C,)
        of_class = theta.new_zeros(num_classes)
        mixed = theta.new_zeros(num_classes)  # how the classes' probabilities follow tau
        slope, curvature = torch.zeros_like(theta), theta.new_zeros(len(theta), len(theta))
        for cosines, label in self.parts():
            probs = self.logits(theta, cosines).softmax(dim=1)
            weighed = probs * cosines
            mean = weighed.sum(dim=1)  # (b,) of an image's cosines
            of_class += probs.sum(dim=0)
            mixed += weighed.sum(dim=0) - mean @ probs
            slope[0] += mean.sum() - cosines.gather(1, label.unsqueeze(1)).sum()
            curvature[0, 0] += weighed.flatten() @ cosines.flatten() - mean.square().sum()
            curvature[1:, 1:] += self._curvature_of_shift(probs)

        slope[1:] = (of_class - truth) @ self.design
        slope /= n
        slope[0] += TEMPERATURE_PENALTY * (theta[0] / self.scale - 1) / self.scale
        slope[1:] += penalty * theta[1:]
        curvature[0, 1:] = curvature[1:, 0] = mixed @ self.design
        curvature /= n
        curvature[0, 0] += TEMPERATURE_PENALTY / self.scale**2
        curvature.diagonal()[1:] += penalty
        curvature.diagonal().add_(1e-9)
        return curvature, slope

    def _curvature_of_shift(self, probs: Tensor) -> Tensor:
        """T^T M T ``(k, k)`` of some images, M ``(C, C)`` the curvature of class biases; without M where there are
        fewer axes.
        """
        num_classes, num_axes = self.design.shape
        of_class = probs.sum(dim=0)
        if 2 * num_axes > num_classes:
            return self.design.t() @ (torch.diag(of_class) - probs.t() @ probs) @ self.design
        moved = probs @ self.design  # (b, k)
        return self.design.t() @ (of_class.unsqueeze(1) * self.design) - moved.t() @ moved

    def _line_search(self, theta: Tensor, step: Tensor, value: float, penalty: float) -> tuple[Tensor, float]:
        """Halve the step until the loss falls and tau stays positive; no step where it never does."""
        for halving in range(MAX_HALVINGS):
            moved = theta - 0.5**halving * step
            lower = self.loss(moved, penalty)
            if lower <= value and moved[0] > 0:  # no number is not lower either
                return moved, lower
        return theta, value
