"""What is common to all confusions: one vector v that moves every image feature, z' = norm(z + v) (D).

A CLIP that calls a mug a cup and a stopwatch a clock has a bias that is no matter of these classes: it prefers the
plain name. z + v adds v T_c to the score of class c, so v is a bias of the classes that follows from their texts alone.
It counts no classes, and moves those that nobody trained on as it moves the others. It has D numbers, and is kept only
where classes that it was not fitted to gain by it (:mod:`.held_out_classes`).

Shapes: n images, C classes, D joint width, S strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
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
MAX_CELLS = 2**24  # numbers in a table of images and classes (128 MB); some eight such tables are held at a time


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
        cosines=(z[::stride] @ texts.t()).double(),
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
    """The convex problem in theta = (tau, w) ``(k + 1,)``, in float64.

    Attributes:
        cosines: ``(n, C)`` z T^T.
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
        logits = self.logits(theta)
        value = self.loss(theta, logits, penalty)
        for _ in range(MAX_STEPS):
            curvature, slope = self.curvature_and_slope(theta, logits, penalty)
            step = torch.linalg.solve(curvature, slope)
            theta, logits, lower = self._line_search(theta, step, logits, value, penalty)
            if value - lower < TOLERANCE:
                break
            value = lower
        return theta

    def logits(self, theta: Tensor) -> Tensor:
        """``(n, C)``; linear in theta."""
        return torch.addcmul(self.design @ theta[1:], theta[0], self.cosines)

    def loss(self, theta: Tensor, logits: Tensor, penalty: float) -> float:
        """Mean cross-entropy and both penalties."""
        fit = cross_entropy(logits, self.label) + 0.5 * TEMPERATURE_PENALTY * (theta[0] / self.scale - 1) ** 2
        return float(fit + 0.5 * penalty * theta[1:].square().sum())

    def curvature_and_slope(self, theta: Tensor, logits: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Second derivatives ``(k + 1, k + 1)`` and first ``(k + 1,)`` of the loss."""
        n = len(logits)
        probs = logits.softmax(dim=1)
        spread = probs * (self.cosines - (probs * self.cosines).sum(dim=1, keepdim=True))  # how probs follow tau
        error = probs.sum(dim=0) - torch.bincount(self.label, minlength=probs.shape[1])  # (C,)
        cosine_of_label = self.cosines.gather(1, self.label.unsqueeze(1)).sum()
        between = torch.diag(probs.sum(dim=0)) - probs.t() @ probs  # (C, C), M

        slope = torch.empty_like(theta)
        slope[0] = ((probs * self.cosines).sum() - cosine_of_label) / n
        slope[0] += TEMPERATURE_PENALTY * (theta[0] / self.scale - 1) / self.scale
        slope[1:] = error @ self.design / n + penalty * theta[1:]

        curvature = theta.new_empty(len(theta), len(theta))
        curvature[0, 0] = (spread * self.cosines).sum() / n + TEMPERATURE_PENALTY / self.scale**2
        curvature[0, 1:] = curvature[1:, 0] = spread.sum(dim=0) @ self.design / n
        curvature[1:, 1:] = self.design.t() @ (between / n) @ self.design
        curvature.diagonal()[1:] += penalty
        curvature.diagonal().add_(1e-9)
        return curvature, slope

    def _line_search(
        self, theta: Tensor, step: Tensor, logits: Tensor, value: float, penalty: float
    ) -> tuple[Tensor, Tensor, float]:
        """Halve the step until the loss falls and tau stays positive; no step where it never does."""
        change = self.logits(step)
        for halving in range(MAX_HALVINGS):
            length = 0.5**halving
            moved, there = theta - length * step, logits - length * change
            lower = self.loss(moved, there, penalty)
            if lower <= value and moved[0] > 0:  # no number is not lower either
                return moved, there, lower
        return theta, logits, value
