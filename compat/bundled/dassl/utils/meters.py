"""Running means of training figures."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["AverageMeter", "MetricMeter"]


class AverageMeter:
    """Latest value and running mean of one figure.

    A tensor on an accelerator is kept there, so ``update`` makes no host-device sync; reading ``val``, ``avg`` or
    ``sum`` does.

    Args:
        ema: Keep an exponential mean (0.9 old, 0.1 new, from 0) instead of the plain one.
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._val: Tensor | float = 0
        self._avg: Tensor | float = 0
        self._sum: Tensor | float = 0
        self.count = 0

    def update(self, val: Tensor | float, n: int = 1) -> None:
        """Add ``val`` (number or one-element tensor), which stands for ``n`` observations."""
        if isinstance(val, torch.Tensor):
            # float64 as in Python's sums; MPS has none and does with float32.
            val = val.item() if val.device.type == "cpu" else val.detach().to(_wide_dtype(val.device))
        self._val = val
        self._sum = self._sum + val * n
        self.count += n
        self._avg = self._avg * 0.9 + self._val * 0.1 if self.ema else self._sum / self.count

    @property
    def val(self) -> float:
        """Latest value."""
        return _number(self._val)

    @property
    def avg(self) -> float:
        """Running mean."""
        return _number(self._avg)

    @property
    def sum(self) -> float:
        """Sum over all observations."""
        return _number(self._sum)

    @property
    def pending_avg(self) -> Tensor | float:
        """Running mean, still on its device."""
        return self._avg


def _wide_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, torch.Tensor) else value


class MetricMeter:
    """Several named figures; ``str()`` gives ``name val (avg)`` for each, in order of first appearance."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, Tensor | float] | None) -> None:
        """Add one value per name; None is ignored.

        Raises:
            TypeError: ``input_dict`` is neither a dict nor None.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError(f"MetricMeter.update takes a dict of figures, got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())
