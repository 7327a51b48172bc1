"""The Confusion Bank: every training image that the base model takes for another class (paper 3.2).

Rows are ground truth, columns the class an image was taken for:

>>> import torch
>>> probs = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]])  # three images of classes 0, 0, 1
>>> views = JudgedViews.of(probs, label=torch.tensor([0, 0, 1]), feature=torch.eye(3))
>>> bank = ConfusionBank.build(["cup", "jug", "vase"], ["a.jpg", "b.jpg", "c.jpg"], [views])
>>> bank.counts.int().tolist()
[[0, 1, 0], [1, 0, 0], [0, 0, 0]]

The bank knows tensors, not trainers. Its entries are rows of tensors on one device, with one row of zeros behind the
last entry: what a query cannot fill points there, so that no shape depends on what was found.

Images resemble each other by their *look*: the class token, which holds more of what is seen than the joint space keeps
of it, and beside it the layout of the patch tokens, as :class:`.likeness.Likeness` compares them (D).

Shapes: C classes, M entries, B queries, P mined pairs a query, K representatives, D joint width, N patches, Dv width,
L width of a layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..backbone.layout import patch_layout
from .entry_tokens import TokenSource
from .exchange import checked_predictions, rows_of
from .files import BankMismatchError, StoredBank
from .judged import JudgedViews, confusion_intensity
from .likeness import Likeness
from .names import suspicious_names
from .retrieval import FiledKeys, Retrieved

__all__ = ["ConfusionBank", "JudgedViews", "Retrieved", "confusion_intensity"]


@dataclass(frozen=True)
class _Entries:
    """One row an entry, and a last row of padding."""

    label: Tensor  # (M+1,) int64, -1 for padding
    pseudo_label: Tensor  # (M+1,) int64, -1 for padding
    rival: Tensor  # (M+1,) int64, the class the label is torn with: the pseudo-label of a confused view; -1 for padding
    p_label: Tensor  # (M+1,) confidence in the label
    p_pseudo: Tensor  # (M+1,) confidence in the pseudo-label
    intensity: Tensor  # (M+1,) confusion intensity c
    index: Tensor  # (M+1,) int64, image in `paths`, -1 for padding
    place: Tensor  # (M+1,) int64, as index, but of a list that holds an image twice; -1 for padding and where not known
    view: Tensor  # (M+1,) int64
    feature: Tensor  # (M+1, D)
    cls: Tensor  # (M+1, Dv)
    layout: Tensor  # (M+1, L)
    tokens: Tensor  # (M+1, N, Dv)

    def named(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def without_padding(self) -> dict[str, Tensor]:
        return {name: value[:-1] for name, value in self.named().items()}

    def without_tokens(self) -> dict[str, Tensor]:
        return {name: value[:-1] for name, value in self.named().items() if name not in ("tokens", "place")}

    @classmethod
    def padded(cls, rows: dict[str, Tensor]) -> _Entries:
        pads = {"label": -1, "pseudo_label": -1, "rival": -1, "index": -1, "place": -1}
        with_padding = {}
        for name in list(rows):  # each is let go as soon as its copy is made: they may be large
            value = rows.pop(name)
            pad = value.new_full((1, *value.shape[1:]), pads.get(name, 0))
            with_padding[name] = torch.cat([value, pad])
        return cls(**with_padding)


class ConfusionBank(StoredBank):
    """Confused samples filed by (label, pseudo-label).

    Args:
        classnames: C names of the classes that labels and pseudo-labels count.
        paths: image path of each data-set index, relative to the data root where possible.
        entries: the rows; made by :meth:`build`.
        counts: ``(C, C)`` fp32, n[y, t]; rows label, columns pseudo-label, diagonal zero.
        fingerprint: what the bank was built from (data set, seed, shots, class names, base weights, source, views).
        shrinkage: see :class:`Likeness`.
    """

    def __init__(
        self,
        classnames: Sequence[str],
        paths: Sequence[str],
        entries: _Entries,
        counts: Tensor,
        fingerprint: dict[str, Any] | None = None,
        shrinkage: float = 1.0,
    ):
        self.classnames = list(classnames)
        self.paths = list(paths)
        self.entries = entries
        self.counts = counts
        self.fingerprint = dict(fingerprint or {})
        self.notes: list[str] = []  # what is said of the class names, see :mod:`.names`
        # (M+1, D) the entries' confusion features once the adapter is trained; they spare a stored bank the tokens.
        self.confusion_features: Tensor | None = None
        self.token_source: TokenSource | None = None  # of the patch tokens, where the entries do not hold them
        self.shrinkage = shrinkage
        look, label = _look(entries.cls[:-1], entries.layout[:-1]), entries.label[:-1]
        self.likeness = Likeness(look, label, self.num_classes, shrinkage)
        self.filed = FiledKeys(look, label, self.num_classes, self.likeness.keys)

    # ------------------------------------------------------------------------------------------------------- building

    @classmethod
    def build(
        cls,
        classnames: Sequence[str],
        paths: Sequence[str],
        views: Iterable[JudgedViews],
        *,
        soft_counts: bool = False,
        near_misses: float | None = None,
        fingerprint: dict[str, Any] | None = None,
        shrinkage: float = 1.0,
    ) -> ConfusionBank:
        """File every view whose pseudo-label differs from its label (paper 3.2).

        A bank of errors alone knows nothing of the images that are rightly taken for a class, so corrections drawn from
        it pull such images away as well. ``near_misses`` also files views that are classified correctly, under the
        label and the runner-up (D); they are entries to retrieve, not errors, and count nothing in n.

        Args:
            classnames: C class names.
            paths: image path of each data-set index.
            views: batches of judged views, of training images only.
            soft_counts: count the confidence p_j of every view in n[y, j], j != y, not one for its pseudo-label (D).
            near_misses: file right views from this confusion intensity on, in [0, 1]; None files none.
            fingerprint: stored with the bank, see :meth:`check`.
            shrinkage: see :class:`Likeness`.

        Raises:
            ValueError: no views, or confidences of another number of classes.
        """
        num_classes, kept, counts = len(classnames), [], None
        for batch in views:
            if batch.probs.shape[1] != num_classes:
                raise ValueError(f"the judge knows {batch.probs.shape[1]} classes, the bank {num_classes}")
            if counts is None:
                counts = torch.zeros(num_classes, num_classes, device=batch.probs.device)
            kept.append(cls._file(batch, counts, soft_counts, near_misses))
        if counts is None:
            raise ValueError("a confusion bank needs at least one view of a training image")
        rows = {name: torch.cat([part.pop(name) for part in kept]) for name in list(kept[0])}
        rows["index"] = _first_places(paths).to(rows["index"].device)[rows["index"]]
        return cls(classnames, paths, _Entries.padded(rows), counts, fingerprint, shrinkage)

    @classmethod
    def from_predictions(
        cls,
        labels: ArrayLike,
        pred_probs: ArrayLike,
        class_names: Sequence[str],
        paths: Sequence[str],
        *,
        near_misses: float | None = None,
    ) -> ConfusionBank:
        """A bank of any model's confidences in labelled images, the triple that cleanlab takes; no CLIP is needed.

        It knows counts, pairs, intensities, images and suspicious names, and can be stored and exported. It keeps no
        features: what asks for similar images says so.

        Args:
            labels: ``(M,)`` places in ``class_names``, or names of it.
            pred_probs: ``(M, C)`` confidences that sum to 1.
            class_names: C names.
            paths: M image paths.
            near_misses: see :meth:`build`.

        Raises:
            ValueError: says which of them does not fit.
        """
        label, probs = checked_predictions(labels, pred_probs, class_names, paths)
        views = JudgedViews.of(probs, label, feature=probs.new_zeros(len(probs), 0))
        origin = {"source": "predictions"}
        bank = cls.build(class_names, paths, [views], near_misses=near_misses, fingerprint=origin)
        num_views = torch.bincount(label, minlength=bank.num_classes)
        bank.notes = suspicious_names(bank.classnames, bank.counts, num_views)
        return bank

    @staticmethod
    def _file(batch: JudgedViews, counts: Tensor, soft_counts: bool, near_misses: float | None) -> dict[str, Tensor]:
        """The rows of these views; ``counts`` ``(C, C)`` is added to in place."""
        num_classes = len(counts)
        probs, label = batch.probs.float(), batch.label
        p_pseudo, pseudo_label = probs.max(dim=-1)
        confused = pseudo_label != label
        intensity = confusion_intensity(probs)
        if soft_counts:
            off_label = probs * (torch.arange(num_classes, device=probs.device) != label.unsqueeze(1))
            counts.index_add_(0, label, off_label)
        else:
            counts.view(-1).index_add_(0, label * num_classes + pseudo_label, confused.float())
        rows = {
            "label": label,
            "pseudo_label": pseudo_label,
            "rival": probs.scatter(1, label.unsqueeze(1), -1.0).argmax(dim=-1),
            "p_label": probs.gather(1, label.unsqueeze(1)).squeeze(1),
            "p_pseudo": p_pseudo,
            "intensity": intensity,
            "index": batch.index,
            "place": batch.index,
            "view": batch.view,
            "feature": batch.feature,
            "cls": batch.cls,
            "layout": batch.layout,
            "tokens": batch.tokens,
        }
        kept = confused if near_misses is None or num_classes < 2 else confused | (intensity >= near_misses)
        return {name: value[kept] for name, value in rows.items()}

    def merge(self, other: ConfusionBank) -> ConfusionBank:
        """Both banks' entries and counts in one; the fingerprint stays this bank's.

        Raises:
            BankMismatchError: the banks count other classes or other images.
        """
        if (self.classnames, self.paths) != (other.classnames, other.paths):
            raise BankMismatchError("banks of different classes or images cannot be merged; build both from one run")
        mine, theirs = self.entries.without_padding(), other.entries.without_padding()
        rows = {name: torch.cat([mine[name], theirs[name].to(mine[name])]) for name in mine}
        counts = self.counts + other.counts.to(self.counts)
        return ConfusionBank(
            self.classnames, self.paths, _Entries.padded(rows), counts, self.fingerprint, self.shrinkage
        )

    # ------------------------------------------------------------------------------------------------------- querying

    def __len__(self) -> int:
        return len(self.entries.label) - 1

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens to adapt; a stored bank carries finished confusion features instead."""
        return self.token_source is not None or self.entries.tokens.shape[1] > 0

    def tokens_of(self, entry: Tensor) -> Tensor:
        """Patch tokens ``(..., N, Dv)`` of entries ``(...)``; zero for padding."""
        entries = self.entries
        if self.token_source is None:
            return entries.tokens[entry]
        found = self.token_source.take(entries.place[entry].flatten(), entries.view[entry].flatten())
        return found.unflatten(0, entry.shape)

    def hold_tokens(self, chunk: int = 256) -> None:
        """Copy the tokens from their source into the entries, where they need no way from the host."""
        parts = torch.arange(len(self) + 1, device=self.device).split(chunk)
        whole: Tensor | None = None
        for part in parts:
            found = self.tokens_of(part)
            whole = found.new_empty(len(self) + 1, *found.shape[1:]) if whole is None else whole
            whole[part] = found
        assert whole is not None, "there is padding at least"
        self.entries, self.token_source = replace(self.entries, tokens=whole), None

    @property
    def num_confused(self) -> int:
        """Entries that are errors; the others are near misses."""
        return int((self.entries.label != self.entries.pseudo_label).sum())

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classnames)

    @property
    def device(self) -> torch.device:
        """Where the entries lie."""
        return self.entries.label.device

    def to(self, device: torch.device | str) -> ConfusionBank:
        """The same bank with its tensors on ``device``."""
        entries = _Entries(**{name: value.to(device) for name, value in self.entries.named().items()})
        counts = self.counts.to(device)
        bank = ConfusionBank(self.classnames, self.paths, entries, counts, self.fingerprint, self.shrinkage)
        bank.notes, bank.token_source = self.notes, self.token_source
        if self.confusion_features is not None:
            bank.confusion_features = self.confusion_features.to(device)
        return bank

    def look(self, cls: Tensor, tokens: Tensor | None) -> Tensor:
        """What queries are compared by: ``(B, Dv + L)`` of class tokens ``(B, Dv)`` and patch tokens ``(B, N, Dv)``.

        Raises:
            ValueError: the bank compares layouts, and there are no patch tokens.
        """
        if not self.entries.layout.shape[1]:
            return cls
        if tokens is None:
            raise ValueError("this bank compares the layout of images, and the base model gives no patch tokens")
        return _look(cls, patch_layout(tokens))

    def retrieve(
        self,
        look: Tensor,
        target: Tensor,
        partners: Tensor,
        query_index: Tensor,
        num_representatives: int,
        by_label: bool = False,
        max_megabytes: float = 256.0,
    ) -> Retrieved:
        """The entries of the mined pairs that are nearest to the query (Eq. 8), never one of the query's own image.

        An entry belongs to the pair {t, j} if {label, rival} = {t, j}; a confused view's rival is its pseudo-label.

        Args:
            look: ``(B, Dv + L)`` of the queries, see :meth:`look`.
            target: ``(B,)`` t as this bank's class index; -1 where the bank does not know the class.
            partners: ``(B, P)`` j likewise; -1 also for an unused place.
            query_index: ``(B,)`` data-set index of the query as this bank counts images; -1 for none of them.
            num_representatives: K.
            by_label: the entries labelled t or j instead, whatever they are torn with (D).
            max_megabytes: of memory that the work may take, see :meth:`FiledKeys.nearest`.

        Raises:
            ValueError: the bank was made of predictions.
        """
        if len(self) and not self.entries.cls.shape[1]:
            raise ValueError("this bank was made of predictions and keeps no features of images; train CAPT for one")
        entries = self.entries
        mined = torch.cat([target.unsqueeze(1), partners], dim=1)  # (B, P+1)

        def is_fit(rows: Tensor, entry: Tensor) -> Tensor:
            own, goal = query_index[rows].unsqueeze(1), target[rows].unsqueeze(1)
            fits = (entries.index[entry] != own) | (own < 0)
            if by_label:
                return fits
            label, rival = entries.label[entry], entries.rival[entry]
            is_mined = (rival.unsqueeze(2) == mined[rows].unsqueeze(1)).any(dim=2)
            return fits & is_mined & ((label == goal) | (rival == goal))

        keys = self.likeness.keys(look)
        return self.filed.nearest(keys, mined, num_representatives, is_fit, max_megabytes)

    def rows(self) -> list[dict[str, str | int | float | bool]]:
        """The entries as plain values with the names of :data:`.exchange.COLUMNS`, the most torn first."""
        return rows_of(self.entries.without_tokens(), self.classnames, self.paths)

    def class_index(self, classnames: Sequence[str]) -> Tensor:
        """``(C',)`` this bank's index of each name, -1 for a class it does not know; equal names match in order."""
        places: dict[str, list[int]] = {}
        for index, name in enumerate(self.classnames):
            places.setdefault(name, []).append(index)
        found = [places[name].pop(0) if places.get(name) else -1 for name in classnames]
        return torch.tensor(found, dtype=torch.long, device=self.device)

    def counts_for(self, classnames: Sequence[str]) -> Tensor:
        """n ``(C', C')`` for another list of classes; 0 where the bank does not know one of the two."""
        index = self.class_index(classnames)
        known = (index >= 0).to(self.counts.dtype)
        index = index.clamp_min(0)
        return self.counts[index][:, index] * known.unsqueeze(1) * known

    def image_index(self, paths: Sequence[str]) -> Tensor:
        """``(len(paths),)`` this bank's data-set index of each image path, -1 for an image it was not built from."""
        place = dict(zip(self.paths, _first_places(self.paths).tolist(), strict=True))
        return torch.tensor([place.get(path, -1) for path in paths], dtype=torch.long, device=self.device)

    def top_pairs(self, num_pairs: int = 10) -> list[tuple[str, str, float]]:
        """The pairs of classes with most confusions in both directions: (a, b, n[a, b] + n[b, a])."""
        both = (self.counts + self.counts.t()).triu(diagonal=1)
        values, cells = both.flatten().topk(min(num_pairs, both.numel()))
        pairs = zip(cells.tolist(), values.tolist(), strict=True)
        c, names = self.num_classes, self.classnames
        return [(names[cell // c], names[cell % c], value) for cell, value in pairs if value > 0]

    # -------------------------------------------------------------------------------------- storing, see StoredBank

    def state_dict(self) -> dict[str, Tensor]:
        """All that is stored: entries ``(M, ...)`` without tokens (300 kB each with ViT-B/16), and n ``(C, C)``."""
        return {**self.entries.without_tokens(), "counts": self.counts}

    @classmethod
    def from_state_dict(
        cls,
        state: dict[str, Tensor],
        classnames: Sequence[str],
        paths: Sequence[str],
        fingerprint: dict[str, Any] | None = None,
        shrinkage: float = 1.0,
    ) -> ConfusionBank:
        """The bank that :meth:`state_dict`, rows ``(M, ...)`` and n ``(C, C)``, came from, but for the tokens."""
        rows = dict(state)
        counts = rows.pop("counts")
        rows["tokens"] = rows["feature"].new_zeros(len(rows["label"]), 0, 0)
        rows["place"] = torch.full_like(rows["index"], -1)
        rows.setdefault("layout", rows["feature"].new_zeros(len(rows["label"]), 0))  # banks up to format 3
        return cls(classnames, paths, _Entries.padded(rows), counts, fingerprint, shrinkage)


def _look(cls: Tensor, layout: Tensor) -> Tensor:
    """``(B, Dv + L)`` fp32."""
    return torch.cat([cls.float(), layout], dim=1)


def _first_places(paths: Sequence[str]) -> Tensor:
    """``(len(paths),)`` the first index of each path: an image that a list holds twice is one image all the same."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(path, index) for index, path in enumerate(paths)], dtype=torch.long)
