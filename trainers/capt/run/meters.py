"""Figures of training steps, summed where they are made and read only when they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["RunningMeans"]


class RunningMeans:
    """Means of named scalars since they were last taken; adding makes the host wait for no device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._number = 0

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device) -> RunningMeans:
        """What :meth:`state` came from."""
        means = cls()
        means._sums = {name: value.to(device) for name, value in state["sums"].items()}
        means._number = state["number"]
        return means

    def state(self) -> dict[str, Any]:
        """What was added and not yet taken, for a checkpoint."""
        return {"sums": dict(self._sums), "number": self._number}

    @torch.no_grad()
    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Count the figures of one step, each a scalar."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._number += 1

    def take(self) -> dict[str, Tensor]:
        """The means, each a scalar, of what was added, which is forgotten."""
        means = {name: value / self._number for name, value in self._sums.items()}
        self._sums, self._number = {}, 0
        return means
