"""What is common to all confusions: one vector v that moves every image feature, z' = norm(z + v) (D).

A CLIP that calls a mug a cup and a stopwatch a clock has a bias that is no matter of these classes: it prefers the
plain name. z + v adds v T_c to the score of class c, so v is a bias of the classes that follows from their texts alone.
It counts no classes, and moves those that nobody trained on as it moves the others. It has D numbers, and is kept only
where classes that it was not fitted to gain by it (:mod:`.held_out_classes`).

Shapes: n images, C classes, D joint width, S strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .experts import move

__all__ = ["SystematicShift", "fit_shift"]

MAX_STEPS = 30
MAX_HALVINGS = 40  # where tau starts far too large the loss is all but straight, and a step millions too long
TOLERANCE = 1e-9  # of the loss
TEMPERATURE_PENALTY = 1e-6  # on (tau / s - 1)^2 / 2; finite also where the shots are told apart without an error
MAX_CELLS = 2**25  # numbers in a table of images and classes; some six such tables are held at a time
CELLS_AT_A_TIME = 2**21  # in one of several penalties; what is larger leaves the processor's cache and the heap


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
    one minimum; the curvature of w is that of C class biases, T^T M T, and costs no more with many images. The penalty
    counts per class, since classes and not images are what v is common to. Memory stays below 2 GB: penalties are taken
    a few at a time, and of very many images every second, third ... is left out.

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
    z, label = z[::stride], label[::stride]
    at_a_time = max(1, CELLS_AT_A_TIME // (len(z) * len(texts)))
    parts = [penalties[start : start + at_a_time] for start in range(0, len(penalties), at_a_time)]
    return torch.cat([_newton(z, label, texts, part, scale) for part in parts])


def _newton(z: Tensor, label: Tensor, texts: Tensor, penalties: Sequence[float], scale: float) -> Tensor:
    """:func:`fit_shift` with all penalties and images at once."""
    num_classes = len(texts)
    cosines = (z @ texts.t()).double()  # (n, C)
    axes = _axes(texts)  # (D, k)
    design = (texts - texts.mean(dim=0)).double() @ axes  # (C, k), what one unit of w along each axis adds to a class
    penalty = torch.as_tensor(penalties, dtype=torch.double, device=z.device).unsqueeze(1) / num_classes  # (S, 1)
    row = torch.arange(len(z), device=z.device)

    def loss(theta: Tensor) -> Tensor:
        logits = theta[:, :1, None] * cosines + (theta[:, 1:] @ design.t()).unsqueeze(1)  # (S, n, C)
        fit = (logits.logsumexp(dim=-1) - logits[:, row, label]).mean(dim=1)
        fit = fit + 0.5 * TEMPERATURE_PENALTY * (theta[:, 0] / scale - 1).pow(2)
        return fit + 0.5 * penalty.squeeze(1) * theta[:, 1:].pow(2).sum(dim=1)

    theta = cosines.new_zeros(len(penalties), 1 + design.shape[1])  # tau, then w along the axes
    theta[:, 0] = scale
    value = loss(theta)
    for _ in range(MAX_STEPS):
        step = torch.linalg.solve(*_curvature_and_slope(theta, cosines, label, design, penalty, scale))
        theta, lower = _line_search(loss, theta, step, value)
        is_settled = bool((value - lower).max() < TOLERANCE)
        value = lower
        if is_settled:
            break
    shift = theta[:, 1:] @ axes.t() / theta[:, :1]
    return shift.float()


def _axes(texts: Tensor) -> Tensor:
    """Orthonormal axes ``(D, k)`` of the differences between the texts; v along anything else changes no answer."""
    _, length, axes = torch.linalg.svd((texts - texts.mean(dim=0)).double(), full_matrices=False)
    return axes[length > 1e-6 * length[0].clamp_min(1e-12)].t()


def _curvature_and_slope(
    theta: Tensor, cosines: Tensor, label: Tensor, design: Tensor, penalty: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Second derivatives ``(S, k+1, k+1)`` and first ``(S, k+1)`` of the loss in (tau, w)."""
    n = len(cosines)
    probs = (theta[:, :1, None] * cosines + (theta[:, 1:] @ design.t()).unsqueeze(1)).softmax(dim=-1)  # (S, n, C)
    weighed = probs * cosines
    mean = weighed.sum(dim=-1)  # (S, n), of an image's cosines
    of_class = probs.sum(dim=1)  # (S, C)
    # Sums over tables of (S, n, C) that are not made: probs less the truth, and how probs follow tau.
    truth = torch.bincount(label, minlength=cosines.shape[1])
    of_tau = mean.sum(dim=1) - cosines.gather(1, label.unsqueeze(1)).sum()
    slope = torch.cat([of_tau.unsqueeze(1), (of_class - truth) @ design + n * penalty * theta[:, 1:]], dim=1)
    follows = (weighed.sum(dim=1) - (mean.unsqueeze(1) @ probs).squeeze(1)) / n  # (S, C)
    spread = (weighed.flatten(1) @ cosines.flatten() - mean.pow(2).sum(dim=1)) / n  # (S,)
    of_shift = _curvature_of_shift(probs, of_class, design)
    mixed = follows @ design  # (S, k)
    curvature = torch.cat(
        [
            torch.cat([spread[:, None, None], mixed.unsqueeze(1)], dim=2),
            torch.cat([mixed.unsqueeze(2), of_shift + torch.diag_embed(penalty.expand(-1, design.shape[1]))], dim=2),
        ],
        dim=1,
    )
    slope = slope / n
    slope[:, 0] += TEMPERATURE_PENALTY * (theta[:, 0] / scale - 1) / scale
    curvature[:, 0, 0] += TEMPERATURE_PENALTY / scale**2
    return curvature + 1e-9 * torch.eye(curvature.shape[1], dtype=curvature.dtype, device=curvature.device), slope


def _curvature_of_shift(probs: Tensor, of_class: Tensor, design: Tensor) -> Tensor:
    """T^T M T / n ``(S, k, k)``, M ``(C, C)`` the curvature of class biases; without M where there are fewer axes."""
    (num_classes, num_axes), n = design.shape, probs.shape[1]
    if 2 * num_axes > num_classes:
        between = torch.diag_embed(of_class) - probs.transpose(1, 2) @ probs  # (S, C, C), M
        return design.t() @ (between / n) @ design
    moved = probs @ design  # (S, n, k)
    return (design.t() @ (of_class.unsqueeze(2) * design) - moved.transpose(1, 2) @ moved) / n


def _line_search(loss: Callable[[Tensor], Tensor], theta: Tensor, step: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Halve each problem's step until its loss falls and tau stays positive; no step where none does."""
    length = torch.ones_like(value)
    for _ in range(MAX_HALVINGS):
        moved = theta - length.unsqueeze(1) * step
        lower = loss(moved)
        is_worse = ~(lower <= value) | (moved[:, 0] <= 0)  # no number is worse as well
        if not is_worse.any():
            return moved, lower
        length = torch.where(is_worse, length / 2, length)
    return torch.where(is_worse.unsqueeze(1), theta, moved), torch.where(is_worse, value, lower)
