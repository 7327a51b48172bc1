"""CAPT, top to bottom in the paper's order: base logits, semantic miner, sample miner, expert, losses.

Before them stands what is common to all confusions, a shift of the image feature (D).

Everything but the adapter and the experts is frozen; without experts (beta 0, what held-out classes choose) nothing is
trained. Nothing trained or chosen depends on the number of classes: the same weights serve the base classes, the new
classes and any other list of names.

Letters used throughout the package: B batch, C classes, N patches (h x h), D joint width, Dv visual width, P mined
pairs, K representatives, M bank entries, E experts; x tokens, z image feature, t pseudo-label, y label, p confidences,
u sample confusion feature, s logit scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone.prompted_clip import ImageFeatures, PromptedCLIP
from ..bank.confusion_bank import ConfusionBank, confusion_intensity
from ..bank.pair_features import PairFeatures
from ..bases.learners import BaseModel, class_logits
from .diff_manner_adapter import DiffMannerAdapter
from .experts import MultiGranularityDiscrepancyExpert, Refinement
from .losses import balance_loss, confuse_loss, keep_loss, original_loss
from .sample_miner import SampleConfusionMiner, SampleSet
from .semantic_miner import MinedPairs, PairSet, SemanticConfusionMiner
from .systematic import SystematicShift

__all__ = ["CAPTModel", "CAPTOutput", "CAPTSettings"]

FORMAT = 2  # 2 holds the systematic shift and the sharpness


@dataclass(frozen=True)
class CAPTSettings:
    """Sizes, switches and weights; :mod:`capt.config` explains each and holds the defaults in use."""

    num_pairs: int = 5
    symmetric: bool = False
    num_representatives: int = 8
    by_label: bool = True
    max_retrieval_megabytes: float = 256.0
    alpha: float = 5.0
    gamma: float = 0.5
    hidden_ratio: int = 4
    top_k: int = 2
    dropout: float = 0.3
    beta: float = 0.1
    sharpness: float = 3.0
    gain: float = 0.6
    gate_by_evidence: bool = True
    use_sem: bool = True
    use_sam: bool = True
    use_adapter: bool = True
    use_mgde: bool = True
    use_corrections: bool = True
    weight_confuse: float = 1.0
    weight_balance: float = 0.01
    weight_keep: float = 300.0


@dataclass(frozen=True)
class CAPTOutput:
    """What CAPT makes of a batch.

    Attributes:
        logits: ``(B, C)`` fp32, l = s z' T^T.
        base_logits: ``(B, C)`` fp32, l0 = s z T^T.
        z: ``(B, D)`` normalised base image feature.
        texts: T ``(C, D)``, or ``(B, C, D)`` of a base whose texts depend on the image.
        refinement: z', gates and evidence.
        pairs: mined semantic confusion pairs.
        samples: mined samples; None with SAM off.
        losses: named scalars that :meth:`CAPTModel.forward` was given labels for; ``loss`` is their weighted sum.
    """

    logits: Tensor
    base_logits: Tensor
    z: Tensor
    texts: Tensor
    refinement: Refinement
    pairs: PairSet
    samples: SampleSet | None
    losses: dict[str, Tensor] | None


def _adapter_for(clip: PromptedCLIP, settings: CAPTSettings) -> DiffMannerAdapter | None:
    """The Diff-Manner Adapter of this CLIP's patch tokens, started from its last block.

    None where CLIP has no patch tokens, or where no expert would read what it makes of them.
    """
    is_read = settings.use_sam and settings.use_adapter and settings.use_mgde
    if not is_read or clip.width is None or clip.grid is None:
        return None
    block = clip.vit.transformer.resblocks[-1]
    adapter = DiffMannerAdapter(clip.width, clip.grid, block.attn.num_heads, settings.alpha, settings.gamma)
    adapter.start_from(block)
    return adapter


def _num_heads(dim: int) -> int:
    """Heads of about 64 channels that share ``dim`` evenly."""
    return next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0)


class Refiner(nn.Module):
    """All that is trained and saved, with a note of the base model it was trained on."""

    base_digest: Tensor  # (32,) uint8
    format: Tensor  # a scalar

    def __init__(self, adapter: DiffMannerAdapter | None, expert: MultiGranularityDiscrepancyExpert, base: BaseModel):
        super().__init__()
        self.systematic = SystematicShift(base.embed_dim)
        self.adapter = adapter
        self.expert = expert
        # A tensor rather than extra state, so that every Dassl and torch.load(weights_only=True) can carry it.
        digest = torch.tensor(list(bytes.fromhex(base.digest())), dtype=torch.uint8)
        self.register_buffer("base_digest", digest)
        self.register_buffer("format", torch.tensor(FORMAT))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Format 1 was written before there was a shift, with the sharpness that was the default then.

        And with ``MGDE.ON False`` an adapter was once trained and stored that no expert read.
        """
        state_dict.setdefault(f"{prefix}systematic.shift", torch.zeros_like(self.systematic.shift))
        state_dict.setdefault(f"{prefix}expert.sharpness", torch.tensor(7.0))
        if self.expert.mixture is None and not any(key.startswith(f"{prefix}expert.mixture") for key in state_dict):
            for key in [key for key in state_dict if key.startswith(f"{prefix}adapter.")]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *others)
        self.format.fill_(FORMAT)


class CAPTModel(nn.Module):
    """Confusion-aware refinement of a frozen base model's image features.

    Call :meth:`set_classes` before the first forward, and again to serve other classes.

    Args:
        base: the frozen base model.
        settings: sizes and switches.
    """

    to_bank: Tensor  # (C,) the bank's index of each class
    bank_text_features: Tensor  # (C_bank, D)

    def __init__(self, base: BaseModel, settings: CAPTSettings):
        super().__init__()
        self.base = base
        self.settings = settings
        self.semantic_miner = SemanticConfusionMiner(settings.num_pairs, settings.symmetric)
        adapter = _adapter_for(base.prompted, settings)
        self.sample_miner = None
        if settings.use_sam:
            sought = settings.num_representatives, settings.by_label, settings.max_retrieval_megabytes
            self.sample_miner = SampleConfusionMiner(adapter, *sought)
        expert = MultiGranularityDiscrepancyExpert(
            base.embed_dim,
            _num_heads(base.embed_dim),
            settings.hidden_ratio,
            settings.top_k,
            settings.dropout,
            settings.beta,
            settings.sharpness,
            settings.gain,
            settings.gate_by_evidence,
            settings.use_mgde,
            settings.use_corrections,
        )
        self.refiner = Refiner(adapter, expert, base)
        self.bank: ConfusionBank | None = None
        self.register_buffer("to_bank", torch.zeros(0, dtype=torch.long), persistent=False)
        self.register_buffer("bank_text_features", torch.zeros(0, 0), persistent=False)

    @property
    def is_learned(self) -> bool:
        """Whether anything is trained by gradients; without experts all there is is chosen before the first step."""
        return any(True for _ in self.refiner.parameters())

    # -------------------------------------------------------------------------------------------------------- binding

    @torch.no_grad()
    def set_classes(self, classnames: Sequence[str], features: PairFeatures, bank: ConfusionBank | None) -> None:
        """Serve these classes.

        Args:
            classnames: C names.
            features: the prompt features of their pairs.
            bank: the confusion bank, which need not know all of the classes; None to work without.
        """
        self.base.set_classes(classnames)
        self.bank = bank
        num_classes = len(classnames)
        if bank is None:
            counts = self.base.text_features.new_zeros(num_classes, num_classes)
        else:
            counts = bank.counts_for(classnames)
            self.to_bank = bank.class_index(classnames)
            self.bank_text_features = self.base.encode_classes(bank.classnames)
        self.semantic_miner.set_classes(counts, features)

    # -------------------------------------------------------------------------------------------------------- forward

    @torch.no_grad()
    def encode(self, images: Tensor) -> ImageFeatures:
        """Base-model features of ``(B, 3, H, W)`` images; the only step that touches pixels."""
        return self.base.encode_image(images)

    def forward(
        self,
        z: Tensor,
        cls: Tensor | None,
        tokens: Tensor | None,
        label: Tensor | None = None,
        query_index: Tensor | None = None,
        mined: MinedPairs | None = None,
    ) -> CAPTOutput:
        """Refine a batch of base-model features.

        Args:
            z: ``(B, D)`` normalised image features.
            cls: ``(B, Dv)`` class tokens, or what stands in for them; None with SAM off.
            tokens: ``(B, N, Dv)`` patch tokens; None for a ResNet.
            label: ``(B,)`` ground truth; losses are computed when it is given.
            query_index: ``(B,)`` the bank's data-set index of each image; -1 (default) for images not in the bank.
            mined: the pairs that an earlier call mined of these very features; they are mined anew by default.
        """
        settings = self.settings
        if query_index is None:
            query_index = torch.full((len(z),), -1, dtype=torch.long, device=z.device)

        # Base model, and the shift that is common to all confusions. What CLIP believes then (its top class is the
        # pseudo-label t) and how torn it is between classes are the confusions that remain.
        texts = self.base.text_features_for(z)
        base_logits = class_logits(z, texts, self.base.logit_scale)
        shifted = self.refiner.systematic(z)
        probs = class_logits(shifted, texts, self.base.logit_scale).softmax(dim=-1)

        # Semantic Confusion Miner: pairs (t, j_1 ... j_P) by Eq. 7, with what is said of them.
        is_met = mined is not None
        mined = self.semantic_miner.mine(probs) if mined is None else mined
        pairs = self.semantic_miner(mined, self._wanted(mined, label is not None), is_met)

        # Sample Confusion Miner: representatives of these pairs, confusion features by the adapter (Eq. 8-10).
        samples = None
        if self.sample_miner is not None:
            if cls is None or (tokens is None and self.refiner.adapter is not None):
                raise ValueError("the base model gives no patch tokens; set TRAINER.CAPT.SAM.ON False")
            samples = self.sample_miner(
                cls,
                tokens,
                confusion_intensity(probs),
                pairs,
                self.base.project,
                self.bank,
                self.to_bank,
                self.bank_text_features,
                query_index,
                z,
            )

        # Multi-Granularity Discrepancy Expert: the refined feature z' (Eq. 11).
        refinement = self.refiner.expert(shifted, pairs if settings.use_sem else None, samples)
        logits = class_logits(refinement.z, texts, self.base.logit_scale)

        losses = None if label is None else self._losses(logits, label, texts, pairs, samples, refinement)
        return CAPTOutput(logits, base_logits, z, texts, refinement, pairs, samples, losses)

    def _wanted(self, pairs: MinedPairs, has_losses: bool) -> Tensor:
        """Which pairs ``(B, P)`` are worth encoding: what is said of them may change an answer or a loss.

        With a gate by evidence the experts are silent where the bank knows neither t nor any j.
        """
        settings = self.settings
        if not (settings.use_sem and settings.use_mgde):
            return torch.zeros_like(pairs.valid)
        is_trained = self.refiner.training or has_losses  # Dassl tells the part that it trains alone whether it does
        if is_trained or not settings.gate_by_evidence:
            return pairs.valid
        if self.bank is None or not settings.use_sam:
            return torch.zeros_like(pairs.valid)
        known = self.to_bank >= 0
        is_known = known[pairs.target] | (known[pairs.partners] & pairs.valid).any(dim=1)  # (B,)
        return pairs.valid & is_known.unsqueeze(1)

    def _losses(
        self,
        logits: Tensor,
        label: Tensor,
        texts: Tensor,
        pairs: PairSet,
        samples: SampleSet | None,
        refinement: Refinement,
    ) -> dict[str, Tensor]:
        """L = L_ori + lambda L_confuse (Eq. 3), and the regularisers; every term that is in use under its own name."""
        settings = self.settings
        losses = {"loss_ori": original_loss(logits, label)}
        weights = {"loss_ori": 1.0}
        if samples is not None and self.refiner.adapter is not None and settings.weight_confuse:
            rivals = torch.cat([pairs.target.unsqueeze(1), pairs.partners], dim=1)  # (B, P+1)
            there = torch.cat([torch.ones_like(pairs.valid[:, :1]), pairs.valid], dim=1)
            own = label if self.bank is None else self.to_bank[label]
            losses["loss_confuse"] = confuse_loss(
                samples.u,
                texts,
                label,
                rivals,
                there & (rivals != label.unsqueeze(1)),
                samples.features,
                samples.valid & (samples.label != own.unsqueeze(1)),
                self.base.logit_scale,
            )
            weights["loss_confuse"] = settings.weight_confuse
        if refinement.gates is not None and settings.weight_balance:
            losses["loss_balance"] = balance_loss(refinement.gates)
            weights["loss_balance"] = settings.weight_balance
        if settings.weight_keep:
            losses["loss_keep"] = keep_loss(refinement.residual)
            weights["loss_keep"] = settings.weight_keep
        first, *others = (weights[name] * value for name, value in losses.items())
        total = sum(others, start=first)
        return {"loss": total, **losses}
