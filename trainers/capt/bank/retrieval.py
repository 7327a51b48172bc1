"""Which entries of a query's mined classes are nearest to it, at the cost of these entries alone (Eq. 8).

The bank's keys are filed by label, so the entries of a class stand side by side. A query is compared with the entries
of the classes that were mined for it; places (query, class, n-th entry of the class) make a table of candidates, which
is worked off in pieces, so that neither a large bank nor one with a very large class takes more memory than it may. No
piece is wider than the classes that may stand in it: a query's largest class comes first, and where only so many
classes are that large, only so many are looked at.

Shapes: B queries, S mined classes a query, M entries, W candidates of a class in one piece, K neighbours, L width of a
look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["FiledKeys", "Retrieved"]

FEW = 2048  # entries up to which one product with all of them costs less than finding out which are needed
NOTHING = torch.iinfo(torch.int64).min  # ranks below everything that there is
BYTES_A_PLACE = 96  # that a candidate takes while it is ranked
FILED_AT_A_TIME = 16_384


@dataclass(frozen=True)
class Retrieved:
    """Representative confused samples of B queries.

    Attributes:
        entry: ``(B, K)`` int64 rows of the bank, nearest first and of equals the first; the padding row where
            ``valid`` is False.
        valid: ``(B, K)`` bool.
        similarity: ``(B, K)`` cosine of the keys; 0 where not valid.
    """

    entry: Tensor
    valid: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class _Piece:
    """The ``start``-th to ``stop``-th entry of the ``num_classes`` largest classes that were mined for a query."""

    start: int
    stop: int
    num_classes: int


class FiledKeys:
    """The keys of the bank's entries, filed by label; the one copy of them that there is.

    Args:
        look: ``(M, L)`` of the entries, see :meth:`.confusion_bank.ConfusionBank.look`.
        label: ``(M,)`` int64 their labels.
        num_classes: C.
        keys: looks ``(n, L)`` to normalised keys ``(n, L)`` fp32.
    """

    def __init__(self, look: Tensor, label: Tensor, num_classes: int, keys: Callable[[Tensor], Tensor]):
        self.entry = label.argsort(stable=True)  # (M,) which entry's key each row is
        self.keys = torch.empty(look.shape, dtype=torch.float32, device=look.device)
        for start in range(0, len(look), FILED_AT_A_TIME):
            rows = slice(start, start + FILED_AT_A_TIME)
            self.keys[rows] = keys(look[self.entry[rows]])
        size = torch.bincount(label, minlength=num_classes)
        self.first = pad(size.cumsum(0), (1, 1))  # (C + 2,) where each class begins; an empty class behind the last
        self.first[-1] = self.first[-2]
        self.bounds: list[int] = self.first.tolist()  # the same for the host
        self.sizes: list[int] = size.sort(descending=True).values.tolist()  # of the classes, largest first
        self.is_gathered = look.device.type != "cpu"  # a shape that followed from the classes would cost a host sync

    def __len__(self) -> int:
        return len(self.entry)

    def nearest(
        self,
        query: Tensor,
        mined: Tensor,
        num_neighbours: int,
        is_fit: Callable[[Tensor, Tensor], Tensor],
        max_megabytes: float,
    ) -> Retrieved:
        """The nearest entries labelled with one of the mined classes.

        Args:
            query: ``(B, L)`` keys of the queries.
            mined: ``(B, S)`` int64 classes; -1 for none. One named twice counts once.
            num_neighbours: K.
            is_fit: rows of queries ``(b,)`` and entries ``(b, w)``, M for none, to which of these may be taken.
            max_megabytes: what the work may take besides the answer, down to one query and one entry of each class.
        """
        num_classes = len(self.first) - 2
        again = (mined.unsqueeze(2) == mined.unsqueeze(1)).tril(-1).any(dim=2)
        mined = torch.where((mined < 0) | again, num_classes, mined)
        size = self.first[mined + 1] - self.first[mined]
        mined = mined.gather(1, size.argsort(dim=1, descending=True, stable=True))
        height, pieces = self._pieces(mined.shape[1], num_neighbours, max_megabytes)
        rank = mined.new_full((len(query), num_neighbours), NOTHING)
        for rows in torch.arange(len(query), device=query.device).split(height):
            rank[rows] = self._best(query[rows], mined[rows], rank[rows], pieces, partial(is_fit, rows))
        valid = rank > NOTHING
        entry, similarity = _unranked(rank)
        return Retrieved(entry.masked_fill(~valid, len(self)), valid, similarity.masked_fill(~valid, 0.0))

    def _pieces(self, num_mined: int, num_neighbours: int, max_megabytes: float) -> tuple[int, list[_Piece]]:
        """How many queries at a time, and the pieces of the table of their candidates."""
        budget, key = int(max_megabytes * 2**20), 4 * self.keys.shape[1]
        place = BYTES_A_PLACE + num_mined + (key if self.is_gathered and len(self) > FEW else 0)
        query = 4 * len(self) if len(self) <= FEW else 2 * key * num_mined
        query += place * num_neighbours
        pieces, start, num_classes = [], 0, min(num_mined, len(self.sizes))
        while num_classes:
            # A class that is not twice as large is not worth a piece of its own.
            larger = sum(size > 2 * self.sizes[num_classes - 1] for size in self.sizes[:num_classes])
            stop, width = self.sizes[larger], max(1, (budget - query) // (place * num_classes))
            pieces += [_Piece(at, min(at + width, stop), num_classes) for at in range(start, stop, width)]
            start, num_classes = stop, larger
        largest = max([(piece.stop - piece.start) * piece.num_classes for piece in pieces], default=0)
        return max(1, budget // (place * largest + query)), pieces

    def _best(
        self,
        query: Tensor,
        mined: Tensor,
        best: Tensor,
        pieces: Sequence[_Piece],
        is_fit: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Ranks ``(b, K)``, highest first, of the ``best`` so far and the candidates in these pieces."""
        for piece in pieces:
            classes = mined[:, : piece.num_classes]
            place = self.first[classes].unsqueeze(2) + torch.arange(piece.start, piece.stop, device=mined.device)
            is_there = (place < self.first[classes + 1].unsqueeze(2)).flatten(1)  # (b, S W)
            place = place.flatten(1).clamp_max(len(self) - 1)
            entry = self.entry[place].masked_fill(~is_there, len(self))
            similarity = self._similarity(query, classes, place, piece)
            rank = _rank(similarity, entry).masked_fill(~(is_there & is_fit(entry)), NOTHING)
            best = torch.cat([best, rank], dim=1).topk(best.shape[1], dim=1).values
        return best

    def _similarity(self, query: Tensor, mined: Tensor, place: Tensor, piece: _Piece) -> Tensor:
        """``(b, S W)`` of queries and the keys at their places; anything where a class has no such place."""
        if len(self) <= FEW:
            return (query @ self.keys.t()).gather(1, place)
        if self.is_gathered:
            return torch.einsum("bwd,bd->bw", self.keys[place], query)
        return self._by_class(query, mined, piece)

    def _by_class(self, query: Tensor, mined: Tensor, piece: _Piece) -> Tensor:
        """The same by one product a class with all queries that mined it, which copies no key."""
        order = mined.flatten().argsort(stable=True)
        classes, times = mined.flatten()[order].unique_consecutive(return_counts=True)
        asking = query[order // mined.shape[1]]
        found = query.new_zeros(len(order), piece.stop - piece.start)
        done = 0
        for label, num in zip(classes.tolist(), times.tolist(), strict=True):
            first = self.bounds[label]
            keys = self.keys[first + piece.start : min(first + piece.stop, self.bounds[label + 1])]
            if len(keys):
                torch.mm(asking[done : done + num], keys.t(), out=found[done : done + num, : len(keys)])
            done += num
        similarity = torch.empty_like(found)
        similarity[order] = found
        return similarity.view(len(query), -1)


def _rank(similarity: Tensor, entry: Tensor) -> Tensor:
    """One int64 for both: the greater the more similar, and of equals the greater the earlier the entry.

    The bits of a float, read as an integer, are in the order of the floats; of negative ones in the reverse.
    """
    bits = (similarity.float() + 0.0).view(torch.int32)  # + 0.0 leaves one zero
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) | (0xFFFFFFFF - entry)


def _unranked(rank: Tensor) -> tuple[Tensor, Tensor]:
    """Entries and similarities of :func:`_rank`."""
    ordered = (rank >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return 0xFFFFFFFF - (rank & 0xFFFFFFFF), bits.view(torch.float32)
