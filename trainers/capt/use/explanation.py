"""Why an image got its answer: the pairs that were mined, what is said of them, the training images that spoke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.model import CAPTOutput
from .predictor import Images, Prediction, Predictor

__all__ = ["Explanation", "MinedPair", "Representative", "explain"]


@dataclass(frozen=True)
class MinedPair:
    """A semantic confusion pair (t, j).

    Attributes:
        target: t, the base model's answer.
        partner: j.
        score: S_j of Eq. 7.
        difference: sentences on what tells t from j.
        commonality: sentences on what the two share.
        sources: where the two sides' sentences come from.
    """

    target: str
    partner: str
    score: float
    difference: tuple[str, ...]
    commonality: tuple[str, ...]
    sources: tuple[str, str]


@dataclass(frozen=True)
class Representative:
    """A training image of the bank that is filed under the mined pairs.

    Attributes:
        path: the image as the bank names it, relative to the data root where possible.
        label: its class.
        rival: the class that it was taken for, or in a near miss the runner-up.
        is_error: whether it was taken for ``rival``.
        similarity: cosine to the query.
    """

    path: str
    label: str
    rival: str
    is_error: bool
    similarity: float


@dataclass(frozen=True)
class Explanation:
    """What lies behind one prediction.

    Attributes:
        prediction: the answers of CAPT and of its base model.
        pairs: mined pairs, most confusable first.
        representatives: the retrieved training images, nearest first.
        evidence: in [0, 1), how much the bank knows of these pairs.
        angle: degrees by which CAPT turned the image feature.
    """

    prediction: Prediction
    pairs: tuple[MinedPair, ...]
    representatives: tuple[Representative, ...]
    evidence: float
    angle: float

    @property
    def is_changed(self) -> bool:
        """Whether CAPT answers otherwise than its base model."""
        return self.prediction.class_name != self.prediction.base_class_names[0]


@torch.no_grad()
def explain(
    predictor: Predictor,
    images: Images,
    class_names: Sequence[str] | None = None,
    top_k: int = 5,
    batch_size: int = 100,
    shown: bool = True,
) -> list[Explanation]:
    """One :class:`Explanation` an image; arguments as in :meth:`Predictor.predict` and :meth:`Predictor.batches`."""
    predictor.serve(class_names)
    found: list[Explanation] = []
    for paths, output in predictor.batches(images, batch_size, shown):
        predictions = predictor.predictions(paths, output, top_k)
        pairs, representatives = mined_pairs(predictor, output), retrieved(predictor, output)
        angles = _angles(output.z, output.refinement.z)
        evidence = output.refinement.evidence.tolist()
        found += map(Explanation, predictions, pairs, representatives, evidence, angles)
    return found


def mined_pairs(predictor: Predictor, output: CAPTOutput) -> list[tuple[MinedPair, ...]]:
    """The mined pairs of each image of a batch, with their sentences."""
    names, mined = predictor.served, output.pairs
    rows = zip(mined.target.tolist(), mined.partners.tolist(), mined.scores.tolist(), mined.valid.tolist(), strict=True)
    return [
        tuple(
            _pair(predictor, names[target], names[partner], score)
            for partner, score, is_valid in zip(partners, scores, valid, strict=True)
            if is_valid
        )
        for target, partners, scores, valid in rows
    ]


def _pair(predictor: Predictor, target: str, partner: str, score: float) -> MinedPair:
    prompts = predictor.library.prompts(target, partner)
    return MinedPair(target, partner, score, prompts.difference, prompts.commonality, prompts.sources)


def retrieved(predictor: Predictor, output: CAPTOutput) -> list[tuple[Representative, ...]]:
    """The representatives of each image of a batch; none where the bank is not consulted."""
    samples, bank = output.samples, predictor.bank
    if samples is None or bank is None or not predictor.consults_bank:
        return [()] * len(output.logits)
    entries = bank.entries
    label, pseudo, rival, index = (
        getattr(entries, name)[samples.entry.clamp_min(0)].tolist()
        for name in ("label", "pseudo_label", "rival", "index")
    )
    rows = zip(label, pseudo, rival, index, samples.similarity.tolist(), samples.valid.tolist(), strict=True)
    names = bank.classnames
    return [
        tuple(
            Representative(bank.paths[i], names[y], names[r], y != t, cosine)
            for y, t, r, i, cosine, is_valid in zip(*row, strict=True)
            if is_valid
        )
        for row in rows
    ]


def _angles(a: Tensor, b: Tensor) -> list[float]:
    cosine = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1)
    return cosine.acos().rad2deg().tolist()
