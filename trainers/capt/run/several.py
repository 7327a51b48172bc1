"""A trainer that several processes run together: the same start and order, a share of each batch, one that writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .distributed import from_first, is_first, wait_for_all, world
from .host_dassl import taken_by
from .shares import backward, shared_loader
from .states import rng_state, set_rng_state

if TYPE_CHECKING:
    from dassl.engine import TrainerX as Host
else:
    Host = object  # the class that follows in the trainer's bases

__all__ = ["SharedRunMixin"]


class SharedRunMixin(Host):
    """Mix in before Dassl's ``TrainerX``; does nothing where there is one process.

    Its ``forward_backward`` calls :func:`.shares.begin_batch`, then :meth:`model_backward` or :func:`.shares.backward`,
    and makes its figures the batch's by :func:`.shares.mean_figures`.
    """

    def before_epoch(self) -> None:
        """Dassl's hook; all processes start with the first one's weights, and take its random states."""
        if world() > 1:
            set_rng_state(from_first(rng_state()))
            if self.epoch == self.start_epoch:
                self._take_weights_of_first()
        super().before_epoch()

    @torch.no_grad()
    def _take_weights_of_first(self) -> None:
        for name in self.get_model_names():
            trained = [p for p in self._models[name].parameters() if p.requires_grad]
            for mine, first in zip(trained, from_first([p.cpu() for p in trained]), strict=True):
                mine.copy_(first)

    def run_epoch(self) -> None:
        """Dassl's epoch, over this process's rows of each batch."""
        loader: Any = self.train_loader_x
        self.train_loader_x = shared_loader(loader)
        try:
            super().run_epoch()
        finally:
            self.train_loader_x = loader

    def model_backward(self, loss: Tensor) -> None:
        """Check the loss, a scalar, and back-propagate it; the gradients are those of the whole batch."""
        if loss.device.type == "cpu" or self.is_to_report():  # a look at it makes the host wait for a GPU
            self.detect_anomaly(loss)
        assert self.optim is not None, "something is trained"
        backward(loss, self.optim)

    def is_to_report(self) -> bool:
        """Whether Dassl prints or writes figures behind this batch."""
        done, every = self.batch_idx + 1, self.cfg.TRAIN.PRINT_FREQ
        return done % every == 0 or done == self.num_batches or self.num_batches < every

    def after_epoch(self) -> None:
        """Dassl's hook; what the first process has written is there for all."""
        super().after_epoch()
        wait_for_all()

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Dassl's checkpoint, by the first process."""
        if is_first():
            named = {"is_best": is_best, "val_result": val_result, "model_name": model_name}
            super().save_model(epoch, directory, **taken_by(super().save_model, named))

    def init_writer(self, log_dir: str) -> None:
        """Dassl's curves, by the first process."""
        if is_first():
            super().init_writer(log_dir)
