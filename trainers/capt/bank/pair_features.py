"""What is said of the pairs of classes that somebody mined, as features; of all the others nothing is ever encoded.

Of the C (C - 1) ordered pairs of 1,000 classes a run mines below 5 %. So a pair is encoded when it is first met, kept
in one row of a table that grows with the pairs in use, and found by its number t C + j among the sorted numbers there.
Nothing here has a size that follows from C.

Shapes: B queries, P mined pairs a query, C classes, R pairs known, D joint width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["KnownPairs", "PairFeatures"]

NO_PAIR = 2**62  # a number above that of every pair
Encode = Callable[[Sequence[tuple[str, str]], str | None], tuple[Tensor, Tensor, Counter[str]]]
KnownPairs = tuple[Tensor, Tensor, Tensor]  # pairs (t, j) (R, 2) int64, difference (R, D), commonality (R, D)


class PairFeatures(nn.Module):
    """The prompt features of the pairs of one list of classes, encoded on demand.

    Args:
        classnames: C names.
        encode: ``encode(pairs of names, title)`` as :class:`.prompt_library.PairEncoder` does.
        dim: D.
        max_gigabytes: what the table may take. Where more pairs are in use, those that were not asked for longest are
            forgotten, and encoded again when they are met again. The pairs of one batch always fit.
    """

    keys: Tensor  # (R + 1,) int64, t C + j of each pair, ascending; NO_PAIR behind the last
    rows: Tensor  # (R + 1,) int64, where the pair's features lie; 0, a row of zeros, behind the last
    asked: Tensor  # (capacity,) int64, when each row was asked for last
    difference: Tensor  # (capacity, D) D[t|j]
    commonality: Tensor  # (capacity, D) K[t, j]

    def __init__(self, classnames: Sequence[str], encode: Encode, dim: int, max_gigabytes: float = 0.5):
        super().__init__()
        self.classnames = list(classnames)
        self.encode = encode
        self.max_rows = max(1, int(max_gigabytes * 2**30 / (2 * 4 * dim)))
        self.has_forgotten = False
        self._now = 0
        self.register_buffer("keys", torch.full((1,), NO_PAIR), persistent=False)
        self.register_buffer("rows", torch.zeros(1, dtype=torch.long), persistent=False)
        self.register_buffer("asked", torch.zeros(1, dtype=torch.long), persistent=False)
        self.register_buffer("difference", torch.zeros(1, dim), persistent=False)
        self.register_buffer("commonality", torch.zeros(1, dim), persistent=False)

    @property
    def max_bytes(self) -> int:
        """What the table may come to take: all pairs, or as many as it may hold."""
        num_pairs = len(self.classnames) * (len(self.classnames) - 1)
        return min(num_pairs, self.max_rows) * 2 * self.difference[0].nbytes

    def __len__(self) -> int:
        """R."""
        return len(self.keys) - 1

    def forward(self, target: Tensor, partners: Tensor, wanted: Tensor, is_met: bool = False) -> tuple[Tensor, Tensor]:
        """Difference and commonality ``(B, P, D)`` of pairs, zero where not wanted.

        Args:
            target: ``(B,)`` int64 t.
            partners: ``(B, P)`` int64 j.
            wanted: ``(B, P)`` bool.
            is_met: all these pairs have been met before: nothing is looked for, which costs CUDA a host sync.
        """
        keys = (target.unsqueeze(1) * len(self.classnames) + partners).masked_fill(~wanted, NO_PAIR)
        if not is_met:
            missing = keys[~self._find(keys)[1]]
            if len(missing):
                self._encode(missing.unique(), keys)
        row, _ = self._find(keys)
        self._now += 1
        self.asked.index_fill_(0, row.flatten(), self._now)
        return self.difference[row], self.commonality[row]

    def meet(self, target: Tensor, partners: Tensor, title: str | None = None) -> Counter[str]:
        """Encode ahead the pairs ``target``, ``partners`` (both ``(n,)``), the most frequent ones as far as they fit.

        Returns:
            How many (pair, side)s came from each source.
        """
        keys, times = (target * len(self.classnames) + partners).unique(return_counts=True)
        is_new = ~self._find(keys)[1]
        keys, times = keys[is_new], times[is_new]
        most = times.argsort(descending=True, stable=True)[: max(0, self.max_rows - len(self))]
        return self._encode(keys[most].sort().values, keys[:0], title) if len(most) else Counter()

    def put(self, target: Tensor, partners: Tensor, difference: Tensor, commonality: Tensor) -> None:
        """Take up the features ``(n, D)`` of n different pairs that were encoded elsewhere; known ones stay."""
        keys = (target * len(self.classnames) + partners).to(self.keys.device)
        is_new = (~self._find(keys)[1]).nonzero().squeeze(1)[: max(0, self.max_rows - len(self))]
        if len(is_new):
            self._append(
                keys[is_new], difference.to(self.keys.device)[is_new], commonality.to(self.keys.device)[is_new]
            )

    def take_up(self, classnames: Sequence[str], known: KnownPairs) -> None:
        """:meth:`put` what :meth:`known` gave for another list of classes; the two meet by name."""
        place = {name: index for index, name in reversed(list(enumerate(self.classnames)))}
        here = torch.tensor([place.get(name, -1) for name in classnames], dtype=torch.long)
        pairs = here[known[0].cpu()]  # (R, 2)
        # A name that a list holds twice means the same pair twice; its first row will do.
        first = _first_of_each(pairs[:, 0] * len(self.classnames) + pairs[:, 1])
        of_both = first[(pairs[first] >= 0).all(dim=1) & (pairs[first, 0] != pairs[first, 1])]
        self.put(*pairs[of_both].t(), *(value[of_both.to(value.device)] for value in known[1:]))

    def known(self, most: int | None = None, behind: int = 0) -> KnownPairs:
        """All pairs that are known, in ascending order, with their features; of more than ``most`` the latest used.

        Args:
            most: how many at most; None for all.
            behind: leaves out those that were met while no more than so many were known; where pairs were forgotten,
                which these are is not certain.
        """
        is_asked_for = self.rows[:-1] > behind
        keys, rows = self.keys[:-1][is_asked_for], self.rows[:-1][is_asked_for]
        if most is not None and len(rows) > most:
            kept = self.asked[rows].topk(most).indices.sort().values
            keys, rows = keys[kept], rows[kept]
        pairs = torch.stack([keys // len(self.classnames), keys % len(self.classnames)], dim=1)
        return pairs, self.difference[rows], self.commonality[rows]

    def _find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each key and whether it is there; row 0 where it is not. No pair at all is there, in row 0."""
        place = torch.searchsorted(self.keys, keys)
        is_there = self.keys[place] == keys
        return self.rows[place].masked_fill(~is_there, 0), is_there

    def _encode(self, new: Tensor, in_use: Tensor, title: str | None = None) -> Counter[str]:
        """Encode the pairs with these keys ``(n,)``, ascending; the pairs ``in_use`` must not be forgotten for it."""
        if len(self) + len(new) > self.max_rows:
            self._forget(in_use, len(new))
        names = self.classnames
        pairs = [(names[key // len(names)], names[key % len(names)]) for key in new.tolist()]
        difference, commonality, sources = self.encode(pairs, title)
        self._append(new, difference, commonality)
        return sources

    def _append(self, keys: Tensor, difference: Tensor, commonality: Tensor) -> None:
        used, needed = len(self) + 1, len(self) + 1 + len(keys)
        if needed > len(self.asked):
            self._resize(needed if used == 1 else max(needed, min(2 * len(self.asked), self.max_rows + 1)))
        rows = torch.arange(used, needed, device=self.keys.device)
        self.difference[used:needed], self.commonality[used:needed] = difference, commonality
        self.asked[used:needed] = self._now
        order = torch.cat([self.keys, keys]).argsort()
        self.keys, self.rows = torch.cat([self.keys, keys])[order], torch.cat([self.rows, rows])[order]

    def _resize(self, capacity: int) -> None:
        for name in ("asked", "difference", "commonality"):
            old = getattr(self, name)
            new = old.new_zeros(capacity, *old.shape[1:])
            new[: len(self) + 1] = old[: len(self) + 1]
            setattr(self, name, new)

    def _forget(self, in_use: Tensor, num_new: int) -> None:
        """Make room for ``num_new`` pairs: half of it at least, so that it is made once in a while only."""
        self.has_forgotten = True
        self._now += 1
        self.asked[self._find(in_use)[0]] = self._now
        in_use_now = int((self.asked[self.rows[:-1]] == self._now).sum())
        num_kept = max(in_use_now, min(len(self), self.max_rows // 2, self.max_rows - num_new))
        kept = self.asked[self.rows[:-1]].topk(num_kept).indices.sort().values
        keys, rows = self.keys[kept], self.rows[kept]
        row = torch.arange(1, num_kept + 1, device=rows.device)
        for name in ("asked", "difference", "commonality"):
            value = getattr(self, name)
            value[1 : num_kept + 1] = value[rows]
        self.keys = torch.cat([keys, self.keys[-1:]])
        self.rows = torch.cat([row, self.rows[-1:]])


def _first_of_each(values: Tensor) -> Tensor:
    """Where each of the different ``values (n,)`` stands first."""
    different, of = values.unique(return_inverse=True)
    return torch.full_like(different, len(values)).scatter_reduce(0, of, torch.arange(len(values)), "amin")
