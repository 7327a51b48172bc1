"""A pool of this machine's devices: so many cells at a time, each as early as those that it waits for allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

from .cells import Node

__all__ = ["run_pool"]


def run_pool(nodes: Sequence[Node], lanes: Sequence[str], work: Callable[[Node, str], bool]) -> None:
    """Do ``work`` for every node, on one lane of ``lanes`` each; with one lane, in the order of the nodes.

    Args:
        nodes: numbered by their place; each waits for nodes before it.
        lanes: names of what a node takes for itself while it runs, such as devices.
        work: takes a node and its lane, and says whether to go on at all.
    """
    pool = _Pool(nodes, work)
    if len(lanes) == 1:
        pool.lane(lanes[0])
        return
    with ThreadPoolExecutor(len(lanes)) as threads:
        try:
            list(threads.map(pool.lane, lanes))
        except BaseException:
            pool.stop()
            raise


class _Pool:
    def __init__(self, nodes: Sequence[Node], work: Callable[[Node, str], bool]) -> None:
        self.nodes, self.work = nodes, work
        self.left = list(range(len(nodes)))
        self.running: set[int] = set()
        self.ended: set[int] = set()
        self.changed = Condition()

    def stop(self) -> None:
        with self.changed:
            self.left.clear()
            self.changed.notify_all()

    def lane(self, name: str) -> None:
        while (number := self._take()) is not None:
            goes_on = False
            try:
                goes_on = self.work(self.nodes[number], name)
            finally:
                with self.changed:
                    self.running.discard(number)
                    self.ended.add(number)
                    if not goes_on:
                        self.left.clear()
                    self.changed.notify_all()

    def _take(self) -> int | None:
        """The first node that may run now, once there is one; None where none is left."""
        with self.changed:
            while self.left:
                number = next((number for number in self.left if self._may_run(number)), None)
                if number is not None:
                    self.left.remove(number)
                    self.running.add(number)
                    return number
                self.changed.wait()
            return None

    def _may_run(self, number: int) -> bool:
        # Where a shared run has failed, those that waited for it try it again: one after the other.
        busy = {folder for other in self.running for folder in self.nodes[other].folders}
        node = self.nodes[number]
        return node.after <= self.ended and not busy.intersection(node.folders)
