"""Forms that a systematic part could have: what is fitted to some classes and served to others.

Each answers with cosines that are changed by what was learned; all strengths of a form are fitted at once.

Shapes: n images, C classes, D joint width, S strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial

import torch
from run_features import Classes
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainers.capt.method.semantic_miner import mine_pairs
from trainers.capt.method.shift_choice import PENALTIES
from trainers.capt.method.systematic import fit_shift

__all__ = ["Form", "KernelBias", "LinearMap", "Shift", "Sight", "Unchanged", "Vote"]

NO_SHIFT = 1e6  # a penalty that leaves nothing of v


@dataclass(frozen=True)
class Sight:
    """Images, and the classes that they are to be told apart among.

    Attributes:
        z: ``(n, D)`` normalised features.
        label: ``(n,)`` place in ``classes``.
        classes: C of them.
        scale: CLIP's s.
    """

    z: Tensor
    label: Tensor
    classes: Classes
    scale: float

    def within(self, classes: Tensor, rows: Tensor) -> Sight:
        """The images ``rows``, all of ``classes`` (ascending), in the label space of these."""
        label = torch.searchsorted(classes, self.label[rows])
        return Sight(self.z[rows], label, self.classes.take(classes), self.scale)

    @property
    def cosines(self) -> Tensor:
        """``(n, C)``."""
        return self.z @ self.classes.texts.t()


Answer = Callable[[Sight], Tensor]  # to (S, n, C)


class Form:
    """A form of the systematic part.

    Attributes:
        strengths: S of them, from the most cautious on.
    """

    strengths: Sequence[float] = (0.0,)

    def fit(self, sight: Sight) -> Answer:
        """What it learns from these images, in all strengths."""
        raise NotImplementedError

    def at(self, strength: float) -> Form:
        """With this strength alone."""
        assert is_dataclass(self), "its strengths are a field"
        return replace(self, strengths=(strength,))


@dataclass(frozen=True)
class Unchanged(Form):
    """The base model."""

    def fit(self, sight: Sight) -> Answer:
        """Nothing."""
        return lambda other: other.cosines.unsqueeze(0)


@dataclass(frozen=True)
class Shift(Form):
    """v; the strengths are penalties."""

    strengths: Sequence[float] = PENALTIES

    def fit(self, sight: Sight) -> Answer:
        """See :func:`fit_shift`."""
        shift = fit_shift(sight.z, sight.label, sight.classes.texts, self.strengths, sight.scale)  # (S, D)
        return lambda other: other.cosines + (shift @ other.classes.texts.t()).unsqueeze(1)


@dataclass(frozen=True)
class KernelBias(Form):
    """A bias of each class that likeness of texts, exp(-g (1 - cos)), carries over, beside v or in its place.

    Written as a longer v: on top of T stand the C features of the kernel, which the images do not have.
    """

    width: float  # g
    penalty: float | None  # of v beside it; None for none
    strengths: Sequence[float] = PENALTIES[::2]  # penalties of the kernel's part

    def fit(self, sight: Sight) -> Answer:
        """The bias by :func:`fit_shift`."""
        texts, penalty = sight.classes.texts, self.penalty or NO_SHIFT
        length, axes = torch.linalg.eigh(self._kernel(texts, texts).double())
        kept = length > 1e-5
        whiten = (axes[:, kept] / length[kept].sqrt()).float()
        answers: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = []
        for strength in self.strengths:
            more = (penalty / strength) ** 0.5  # a feature of this length has that penalty
            both = partial(self._both, texts, whiten, more)
            design = both(texts)
            none = sight.z.new_zeros(len(sight.z), design.shape[1] - texts.shape[1])
            shift = fit_shift(torch.cat([sight.z, none], dim=1), sight.label, design, [penalty], sight.scale)
            answers.append((shift, both))
        return lambda other: torch.cat(
            [(other.cosines + shift @ f(other.classes.texts).t())[None] for shift, f in answers]
        )

    def _both(self, texts: Tensor, whiten: Tensor, more: float, other: Tensor) -> Tensor:
        return torch.cat([other, more * self._kernel(other, texts) @ whiten], dim=1)

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        return (-self.width * (1 - a @ b.t())).exp()


@dataclass(frozen=True)
class LinearMap(Form):
    """z + v + (z - mean) A; the strengths are penalties of A, in units in which the images' spread is 1."""

    penalty: float | None  # of v beside it
    strengths: Sequence[float] = (256.0, 64.0, 16.0, 4.0, 1.0, 0.25, 0.0625)

    def fit(self, sight: Sight) -> Answer:
        """By LBFGS, the temperature free beside both."""
        mean = sight.z.mean(dim=0)
        spread = (sight.z - mean).pow(2).sum(dim=1).mean().sqrt()
        z = (sight.z - mean) / spread
        fits = [_fit_map(z, sight, self.penalty or NO_SHIFT, strength) for strength in self.strengths]

        def answer(other: Sight) -> Tensor:
            z = (other.z - mean) / spread
            return torch.stack([other.cosines + (v + z @ a) @ other.classes.texts.t() for v, a in fits])

        return answer


def _fit_map(z: Tensor, sight: Sight, of_shift: float, of_map: float) -> tuple[Tensor, Tensor]:
    """v ``(D,)`` and A ``(D, D)`` under two penalties, for centred features ``z`` of spread 1."""
    texts, num_classes = sight.classes.texts, len(sight.classes.names)
    _, length, axes = torch.linalg.svd(texts - texts.mean(dim=0), full_matrices=False)
    axes = axes[length > 1e-5 * length[0]].t()  # (D, k)
    # In units of their penalties, so that one step length suits all three.
    tau = torch.ones((), requires_grad=True)  # of the scale
    v = torch.zeros(axes.shape[1], requires_grad=True)  # of 1 / sqrt(penalty)
    a = torch.zeros(z.shape[1], axes.shape[1], requires_grad=True)
    design, cosines = texts @ axes, sight.cosines * sight.scale
    optimizer = torch.optim.LBFGS([tau, v, a], max_iter=100, tolerance_change=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = tau * cosines + (v / of_shift**0.5 + z @ a / of_map**0.5) @ design.t()
        loss = cross_entropy(logits, sight.label) + (v.pow(2).sum() + a.pow(2).sum()) / (2 * num_classes)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        unit = axes.t() / (tau * sight.scale)
        return v @ unit / of_shift**0.5, a @ unit / of_map**0.5


@dataclass(frozen=True)
class Vote(Form):
    """Moves the margin between t and each mined j by w z (D[t|j] - D[j|t]); the strengths are the weights w."""

    penalty: float | None  # of v beside it
    is_described: bool  # pairs of the data set's file alone, not those of templates
    is_centred: bool  # z less the images' mean, so that a pair of sentences has no bias of its own
    num_pairs: int = 3
    strengths: Sequence[float] = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

    def fit(self, sight: Sight) -> Answer:
        """v, and the mean of the images."""
        before = (Shift((self.penalty,)) if self.penalty else Unchanged()).fit(sight)
        mean = sight.z.mean(dim=0) if self.is_centred else torch.zeros_like(sight.z[0])

        def answer(other: Sight) -> Tensor:
            cosines = before(other)[0]  # (n, C)
            num_classes = cosines.shape[1]
            probs = (other.scale * cosines).softmax(dim=1)
            pairs = mine_pairs(probs, torch.zeros(num_classes, num_classes), self.num_pairs)
            target, partners = pairs.target.unsqueeze(1), pairs.partners
            d, counts = other.classes.difference, pairs.valid
            if self.is_described:
                counts = counts & other.classes.is_described[target, partners]
            vote = torch.einsum("nd,npd->np", other.z - mean, d[target, partners] - d[partners, target]) * counts
            moved = torch.zeros_like(cosines).scatter_add(1, partners, -vote)
            return cosines + torch.tensor(self.strengths)[:, None, None] * moved

        return answer
