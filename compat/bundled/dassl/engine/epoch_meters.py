"""Times, losses and the log line of one epoch."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..utils import AverageMeter, MetricMeter

if TYPE_CHECKING:
    from .trainer import SimpleTrainer

__all__ = ["EpochMeters"]


class EpochMeters:
    """Figures of the running epoch.

    Tensorboard wants the running means of every batch. Means that live on a GPU are kept there until a line is
    printed, so that a step needs no host-device sync.
    """

    def __init__(self, trainer: SimpleTrainer) -> None:
        self.trainer = trainer
        self.losses = MetricMeter()
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self.pending: list[tuple[str, Tensor | float, int]] = []
        self.end = time.time()

    def got_data(self) -> None:
        """Note the time waited for the batch."""
        self.data_time.update(time.time() - self.end)

    def trained(self, loss_summary: Mapping[str, Tensor | float] | None) -> None:
        """Note the time and the figures of the batch; print where it is due."""
        trainer = self.trainer
        self.batch_time.update(time.time() - self.end)
        self.losses.update(loss_summary)
        batch, freq = trainer.batch_idx + 1, trainer.cfg.TRAIN.PRINT_FREQ
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        lr = trainer.get_current_lr()
        self.pending += [(f"train/{name}", meter.pending_avg, step) for name, meter in self.losses.meters.items()]
        self.pending.append(("train/lr", lr, step))
        is_due = batch % freq == 0 or trainer.num_batches < freq
        if is_due:
            print(self._line(batch, lr))
        if is_due or batch == trainer.num_batches:
            self._write()
        self.end = time.time()

    def _line(self, batch: int, lr: float) -> str:
        trainer = self.trainer
        left = trainer.num_batches - batch + (trainer.max_epoch - trainer.epoch - 1) * trainer.num_batches
        eta = datetime.timedelta(seconds=int(self.batch_time.avg * left))
        parts = [
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}]",
            f"batch [{batch}/{trainer.num_batches}]",
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f})",
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f})",
            f"{self.losses}",
            f"lr {lr:.4e}",
            f"eta {eta}",
        ]
        return " ".join(parts)

    def _write(self) -> None:
        for tag, value, step in self.pending:
            self.trainer.write_scalar(tag, float(value), step)
        self.pending.clear()
