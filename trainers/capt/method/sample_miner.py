"""Sample Confusion Miner: which stored confused samples an image resembles, and their confusion features (paper 3.2).

Shapes: B batch, P mined pairs a query, K representatives, N patches, Dv visual width, D joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..bank.confusion_bank import ConfusionBank
from .diff_manner_adapter import DiffMannerAdapter
from .semantic_miner import MinedPairs

__all__ = ["SampleConfusionMiner", "SampleSet"]


@dataclass(frozen=True)
class SampleSet:
    """The sample-level view of B queries' confusion.

    Attributes:
        u: ``(B, D)`` normalised sample confusion feature of the query.
        features: ``(B, K, D)`` normalised confusion features of the representatives; zero where not valid.
        corrections: ``(B, K, D)`` text feature of their label minus that of their rival; zero where not valid.
        similarity: ``(B, K)`` how alike representative and query are, see :meth:`ConfusionBank.retrieve`; 0 where not
            valid.
        valid: ``(B, K)`` bool.
        label: ``(B, K)`` int64, the representatives' labels as the bank counts classes; -1 where not valid.
        entry: ``(B, K)`` int64, rows of the bank.
    """

    u: Tensor
    features: Tensor
    corrections: Tensor
    similarity: Tensor
    valid: Tensor
    label: Tensor
    entry: Tensor


class SampleConfusionMiner(nn.Module):
    """Retrieves representative confused samples and gives them and the query their confusion features.

    Args:
        adapter: the Diff-Manner Adapter, shared by query and representatives; None leaves image features as they are
            (D), which is what an untrained adapter does, and all that can be done for a ResNet.
        num_representatives: K.
        by_label: see :meth:`ConfusionBank.retrieve`.
        max_megabytes: likewise.
    """

    def __init__(
        self,
        adapter: DiffMannerAdapter | None,
        num_representatives: int,
        by_label: bool = False,
        max_megabytes: float = 256.0,
    ):
        super().__init__()
        self.adapter = adapter
        self.num_representatives = num_representatives
        self.by_label = by_label
        self.max_megabytes = max_megabytes

    def confusion_feature(
        self, cls: Tensor, tokens: Tensor, intensity: Tensor, project: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """u = norm(proj(ln_post(x_cls + pool(X' - X)))) ``(..., D)`` of tokens ``(..., N, Dv)``."""
        assert self.adapter is not None, "without an adapter confusion features are image features"
        lead = cls.shape[:-1]
        adapted = self.adapter(cls.flatten(0, -2), tokens.flatten(0, -3), intensity.flatten())
        return normalize(project(adapted), dim=-1).unflatten(0, lead)

    def forward(
        self,
        cls: Tensor,
        tokens: Tensor | None,
        intensity: Tensor,
        pairs: MinedPairs,
        project: Callable[[Tensor], Tensor],
        bank: ConfusionBank | None,
        to_bank: Tensor | None,
        bank_text_features: Tensor | None,
        query_index: Tensor,
        z: Tensor | None = None,
    ) -> SampleSet:
        """Mine the representatives of a batch.

        Args:
            cls: ``(B, Dv)`` class tokens.
            tokens: ``(B, N, Dv)`` patch tokens; None for a ResNet.
            intensity: ``(B,)`` confusion intensity of the queries.
            pairs: the mined pairs.
            project: class token to joint space.
            bank: None where no bank may be consulted; then no representative is valid.
            to_bank: ``(C,)`` the bank's index of each class in use, -1 for unknown ones.
            bank_text_features: ``(C_bank, D)`` T of the bank's classes.
            query_index: ``(B,)`` the bank's data-set index of each query, -1 for an image it was not built from.
            z: ``(B, D)`` image features, which are read where there is no adapter.
        """
        if self.adapter is not None:
            assert tokens is not None, "the adapter adapts patch tokens"
            u = self.confusion_feature(cls, tokens, intensity, project)
        else:
            assert z is not None, "without an adapter confusion features are image features"
            u = z
        if bank is None or to_bank is None or bank_text_features is None:
            return self._empty(u)
        partners = to_bank[pairs.partners].masked_fill(~pairs.valid, -1)
        target = to_bank[pairs.target]
        sought = self.num_representatives, self.by_label, self.max_megabytes
        found = bank.retrieve(bank.look(cls, tokens), target, partners, query_index, *sought)
        entries = bank.entries
        features = self._entry_features(bank, found.entry, project)  # (B, K, D)
        valid = found.valid.unsqueeze(-1)
        label, rival = entries.label[found.entry], entries.rival[found.entry]
        texts = bank_text_features
        corrections = texts[label.clamp_min(0)] - texts[rival.clamp_min(0)]
        return SampleSet(u, features * valid, corrections * valid, found.similarity, found.valid, label, found.entry)

    def _entry_features(self, bank: ConfusionBank, entry: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        if bank.confusion_features is not None:
            return bank.confusion_features[entry]
        rows = bank.entries
        if self.adapter is None:
            return rows.feature[entry]
        return self.confusion_feature(rows.cls[entry], bank.tokens_of(entry), rows.intensity[entry], project)

    @torch.no_grad()
    def settle(self, bank: ConfusionBank, project: Callable[[Tensor], Tensor], chunk: int = 256) -> None:
        """Compute the confusion features of all entries once, for as long as the adapter does not change."""
        bank.confusion_features = None
        parts = torch.arange(len(bank) + 1, device=bank.device).split(chunk)
        bank.confusion_features = torch.cat([self._entry_features(bank, part, project) for part in parts])

    @contextmanager
    def settled(self, bank: ConfusionBank, project: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """The bank with settled features for a while: training goes on with an adapter that changes."""
        self.settle(bank, project)
        try:
            yield
        finally:
            bank.confusion_features = None

    def _empty(self, u: Tensor) -> SampleSet:
        b, k, d = len(u), self.num_representatives, u.shape[-1]
        none = torch.full((b, k), -1, dtype=torch.long, device=u.device)
        zeros = u.new_zeros(b, k, d)
        return SampleSet(u, zeros, zeros, u.new_zeros(b, k), none >= 0, none, none)
