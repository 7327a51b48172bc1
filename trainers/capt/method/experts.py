"""Multi-Granularity Discrepancy Expert: refines the image feature by what the miners found (paper 3.3, Eq. 11).

Shapes: B batch, P mined pairs, K representatives, D joint width, E = 3 experts, S = 2 + 2 P + K sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..run.shares import SharedDropout
from .sample_miner import SampleSet
from .semantic_miner import PairSet

if TYPE_CHECKING:
    from clip.model import FeedForward

__all__ = ["MultiGranularityDiscrepancyExpert", "Refinement", "cosine_kmeans", "discriminative", "move", "route"]

EXPERTS = ("difference", "commonality", "sample")
TOKEN_TYPES = ("image", "difference", "commonality", "confusion", "representative")


@dataclass(frozen=True)
class Refinement:
    """What the experts make of B queries.

    Attributes:
        z: ``(B, D)`` normalised refined image feature z'.
        residual: ``(B, D)`` the experts' part of the change before normalisation, corrections not included.
        gates: ``(B, E)`` router probabilities before top-k; None with MGDE off.
        evidence: ``(B,)`` in [0, 1), how much the bank knows of the query's pairs.
    """

    z: Tensor
    residual: Tensor
    gates: Tensor | None
    evidence: Tensor


class QuickGELU(nn.Module):
    """CLIP's activation, x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise on ``(..., hidden)``."""
        return x * torch.sigmoid(1.702 * x)


class Expert(nn.Sequential):
    """Feed-forward network D -> 4 D -> D, as CLIP's own."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__(nn.Linear(dim, hidden), QuickGELU(), SharedDropout(dropout), nn.Linear(hidden, dim))

    @property
    def first(self) -> nn.Linear:
        """The layer into the hidden units."""
        return cast(nn.Linear, self[0])

    @property
    def last(self) -> nn.Linear:
        """The layer out of them."""
        return cast(nn.Linear, self[3])

    @torch.no_grad()
    def start_from_prompts(self, prompt_features: Tensor, num_centroids: int, generator: torch.Generator) -> None:
        """Let the hidden units start as detectors of the prompts' themes (P: start from the prompts; R: K-means).

        Args:
            prompt_features: ``(S, D)`` normalised difference or commonality features.
            num_centroids: cosine centroids; the hidden units share them out, each with a little noise of its own.
            generator: CPU generator.
        """
        chosen = discriminative(prompt_features.float().cpu())
        if len(chosen) == 0:
            return
        centroids = cosine_kmeans(chosen, min(num_centroids, len(chosen)), generator)
        weight = self.first.weight
        rows = centroids[torch.arange(len(weight)) % len(centroids)]
        noise = torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
        weight.copy_(normalize(rows + 0.5 * noise, dim=-1).to(weight))

    @torch.no_grad()
    def start_from_mlp(self, mlp: FeedForward) -> bool:
        """Start as a CLIP block's feed-forward network; False where the sizes do not allow it (P)."""
        fits = mlp.c_fc.weight.shape == self.first.weight.shape
        if fits:
            self.first.load_state_dict({k: v.float() for k, v in mlp.c_fc.state_dict().items()})
            self.last.load_state_dict({k: v.float() for k, v in mlp.c_proj.state_dict().items()})
        return fits


def discriminative(features: Tensor, keep: float = 0.8) -> Tensor:
    """The share ``keep`` of normalised features ``(S, D)`` that lie farthest from their common mean.

    What lies near the mean says what all prompts say and tells no class from another (R drops such tokens as well).
    """
    distance = 1 - features @ normalize(features.mean(dim=0), dim=0)
    num_kept = max(1, round(keep * len(features))) if len(features) else 0
    return features[distance.topk(num_kept).indices]


def cosine_kmeans(features: Tensor, num_centroids: int, generator: torch.Generator, num_steps: int = 20) -> Tensor:
    """Cosine centroids ``(num_centroids, D)`` of normalised features ``(S, D)``, S >= num_centroids (R: 5).

    Starts from features far from each other (the first drawn at random), so that no centroid begins empty.
    """
    first = int(torch.randint(len(features), (1,), generator=generator))
    chosen = [first]
    nearest = features @ features[first]
    for _ in range(num_centroids - 1):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, features @ features[chosen[-1]])
    centroids = features[chosen]
    for _ in range(num_steps):
        assigned = (features @ centroids.t()).argmax(dim=1)
        total = torch.zeros_like(centroids).index_add_(0, assigned, features)
        is_empty = total.norm(dim=1, keepdim=True) == 0
        centroids = torch.where(is_empty, centroids, normalize(total, dim=-1))
    return centroids


def route(gate_logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax gates ``(B, E)``, and the routing weights: those of the top-k experts renormalised, 0 for the others."""
    gates = gate_logits.float().softmax(dim=-1)
    kept, expert = gates.topk(top_k, dim=-1)
    weights = torch.zeros_like(gates).scatter(1, expert, kept / kept.sum(dim=-1, keepdim=True))
    return gates, weights


def move(z: Tensor, change: Tensor) -> Tensor:
    """norm(z + change) of normalised features ``(B, D)``.

    Scaled to the norm of z rather than normalised anew: no change at all then gives z back to the last bit.
    """
    moved = z + change
    return moved * (z.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True))


class MultiGranularityDiscrepancyExpert(nn.Module):
    """One attention over all that was mined, then a mixture of a difference, a commonality and a sample expert.

    Every representative contributes its correction vector, the text feature of its label minus that of its rival,
    by its similarity to the query (D). It counts no classes, so it serves classes never trained on.
    The last projection starts at zero: before the first step z' is z and the corrections.

    Args:
        dim: D.
        num_heads: heads of the attention.
        hidden_ratio: hidden width of an expert over D.
        top_k: experts a query is routed to.
        dropout: inside the experts.
        beta: scale of the experts' residual, z' = norm(z + beta r + corrections).
        sharpness: b of the weights exp(-b (1 - cos)) that representatives enter with.
        gain: a, how far the corrections move z. Neither a nor b is learned by gradients: cross-entropy drives them to
            where the corrections change next to no answer, see :mod:`.gain` (D).
        gate_by_evidence: scale the experts' residual by the bank's evidence, so that they are silent where the bank
            knows nothing of a pair (D).
        use_mixture: False leaves only the corrections, the part without a network.
        use_corrections: False leaves only the experts, as in the paper.
    """

    gain: Tensor  # a, a scalar
    sharpness: Tensor  # b, a scalar

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_ratio: int = 4,
        top_k: int = 2,
        dropout: float = 0.3,
        beta: float = 0.1,
        sharpness: float = 3.0,
        gain: float = 0.6,
        gate_by_evidence: bool = True,
        use_mixture: bool = True,
        use_corrections: bool = True,
    ):
        super().__init__()
        self.beta = beta
        self.gate_by_evidence = gate_by_evidence
        self.use_corrections = use_corrections
        self.register_buffer("gain", torch.tensor(float(gain)))
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))
        self.mixture = _Mixture(dim, num_heads, hidden_ratio, top_k, dropout) if use_mixture else None

    def forward(self, z: Tensor, pairs: PairSet | None, samples: SampleSet | None) -> Refinement:
        """Refine image features.

        Args:
            z: ``(B, D)`` normalised image features.
            pairs: mined pairs with their prompt features, padded where not valid; None with SEM off.
            samples: the sample miner's result, padded where not valid; None with SAM off.
        """
        evidence, correction = self.correct(z, samples)
        residual, gates = torch.zeros_like(z), None
        if self.mixture is not None:
            r, gates = self.mixture(z, pairs, samples)
            residual = self.beta * (r * evidence.unsqueeze(1) if self.gate_by_evidence else r)
        change = residual + self.gain * correction if self.use_corrections else residual
        return Refinement(move(z, change), residual, gates, evidence)

    def correct(self, z: Tensor, samples: SampleSet | None) -> tuple[Tensor, Tensor]:
        """Evidence ``(B,)``, and the sum ``(B, D)`` of the representatives' corrections by their likeness, gain 1."""
        if samples is None:
            return z.new_zeros(len(z)), torch.zeros_like(z)
        affinity = (-self.sharpness * (1 - samples.similarity)).exp() * samples.valid  # (B, K)
        support = affinity.sum(dim=1)
        return support / (1 + support), torch.einsum("bk,bkd->bd", affinity, samples.corrections)


class _Mixture(nn.Module):
    """The attention over the mined tokens and the three experts behind it; its last projection starts at zero."""

    def __init__(self, dim: int, num_heads: int, hidden_ratio: int, top_k: int, dropout: float):
        super().__init__()
        self.top_k = top_k
        self.token_type = nn.Parameter(0.02 * torch.randn(len(TOKEN_TYPES), dim))
        self.ln_attention = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.ln_experts = nn.LayerNorm(dim)
        self.router = nn.Linear(dim, len(EXPERTS))
        self.experts = nn.ModuleDict({name: Expert(dim, hidden_ratio * dim, dropout) for name in EXPERTS})
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)

    def expert(self, name: str) -> Expert:
        """One of :data:`EXPERTS`."""
        return cast(Expert, self.experts[name])

    def forward(self, z: Tensor, pairs: PairSet | None, samples: SampleSet | None) -> tuple[Tensor, Tensor]:
        """Residual r ``(B, D)`` and router probabilities ``(B, E)``."""
        spans = self._tokens(z, pairs, samples)
        tokens = torch.cat([span.tokens for span in spans], dim=1)  # (B, S, D)
        valid = torch.cat([span.valid for span in spans], dim=1)  # (B, S)
        normed = self.ln_attention(tokens)
        attended, _ = self.attention(normed[:, :1], normed, normed, key_padding_mask=~valid, need_weights=False)
        h = tokens[:, 0] + attended[:, 0]  # (B, D), position 0 of the self-attention

        gates, weights = route(self.router(self.ln_experts(h)), self.top_k)
        mixture = torch.zeros_like(z)
        for e, name in enumerate(EXPERTS):
            summary = sum(span.mean() for span in spans if span.expert == name)
            mixture = mixture + weights[:, e : e + 1] * self.expert(name)(self.ln_experts(h + summary))
        return self.out(mixture), gates

    def _tokens(self, z: Tensor, pairs: PairSet | None, samples: SampleSet | None) -> list[_Span]:
        """``[z; P differences; P commonalities; u; K representatives]``, each with its type embedding."""
        there = torch.ones(len(z), 1, dtype=torch.bool, device=z.device)
        parts: list[tuple[str, str | None, Tensor, Tensor]] = [("image", None, z.unsqueeze(1), there)]
        if pairs is not None:
            parts.append(("difference", "difference", pairs.difference, pairs.valid))
            parts.append(("commonality", "commonality", pairs.commonality, pairs.valid))
        if samples is not None:
            parts.append(("confusion", "sample", samples.u.unsqueeze(1), there))
            parts.append(("representative", "sample", samples.features, samples.valid))
        return [_Span(part + self.token_type[TOKEN_TYPES.index(kind)], valid, to) for kind, to, part, valid in parts]


@dataclass(frozen=True)
class _Span:
    """A stretch of the token sequence: ``tokens (B, n, D)``, ``valid (B, n)``, and the expert responsible for it."""

    tokens: Tensor
    valid: Tensor
    expert: str | None

    def mean(self) -> Tensor:
        """Mean ``(B, D)`` of the valid tokens, zero where there are none."""
        weight = self.valid.to(self.tokens.dtype)
        total = torch.einsum("bn,bnd->bd", weight, self.tokens)
        return total / weight.sum(dim=1, keepdim=True).clamp_min(1)
