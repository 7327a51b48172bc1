"""From the cells that are left to the jobs of a scheduler: what goes together, and what waits for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cells import Node

__all__ = ["Group", "arrays", "groups_of"]


@dataclass(frozen=True)
class Group:
    """The cells of one job, in order.

    Attributes:
        nodes: their numbers.
        after: numbers of the groups that end before it.
        jobs: ids of jobs, sent before, that end before it.
    """

    nodes: tuple[int, ...]
    after: frozenset[int] = frozenset()
    jobs: frozenset[str] = frozenset()


def groups_of(nodes: Sequence[Node], left: Sequence[int], per_job: int, queued: Mapping[int, str]) -> list[Group]:
    """Put cells that are left into groups of neighbours of one data set.

    Args:
        nodes: all cells.
        left: numbers of those to be sent, in order.
        per_job: so many at most in a group.
        queued: number of a cell that waits or runs already -> id of its job.
    """
    packs: list[list[int]] = []
    for number in left:
        last = packs[-1] if packs else []
        if last and len(last) < per_job and nodes[last[0]].cell.dataset == nodes[number].cell.dataset:
            last.append(number)
        else:
            packs.append([number])
    home = {number: place for place, pack in enumerate(packs) for number in pack}
    groups = []
    for place, pack in enumerate(packs):
        after = {other for number in pack for other in nodes[number].after}
        inside = frozenset(home[other] for other in after if other in home) - {place}
        groups.append(Group(tuple(pack), inside, frozenset(queued[other] for other in after if other in queued)))
    return groups


def arrays(groups: Sequence[Group]) -> list[list[int]]:
    """The numbers of groups that wait for the same, and so can be sent as one array; each behind what it waits for."""
    found: list[list[int]] = []
    sent: set[int] = set()
    while len(sent) < len(groups):
        ready: dict[tuple[frozenset[int], frozenset[str]], list[int]] = {}
        for number, group in enumerate(groups):
            if number not in sent and group.after <= sent:
                ready.setdefault((group.after, group.jobs), []).append(number)
        found += ready.values()
        sent.update(number for array in ready.values() for number in array)
    return found
