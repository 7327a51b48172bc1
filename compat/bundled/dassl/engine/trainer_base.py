"""Registered models with their checkpoints, and the order of a run."""

from __future__ import annotations

import os.path as osp
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..utils import load_checkpoint, save_checkpoint, tolist_if_not
from ..utils.checkpoints import read_for_resume, resume_from_state, saved_epochs
from .rng_state import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TrainerBase"]


class TrainerBase:
    """Registered models with their optimisers and schedules, and the loop over epochs."""

    epoch: int

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, LRScheduler | None] = OrderedDict()
        self._writer: SummaryWriter | None = None

    # Models

    def register_model(
        self,
        name: str = "model",
        model: nn.Module = None,  # type: ignore[assignment]  # Dassl's default, which stands for no model
        optim: Optimizer | None = None,
        sched: LRScheduler | None = None,
    ) -> None:
        """Put a model under the trainer's care: it is saved, resumed and switched between training and eval mode.

        Args:
            name: Name, also of the checkpoint folder.
            model: Module.
            optim: Its optimiser, or None.
            sched: Its schedule, or None.

        Raises:
            AttributeError: Called before ``super().__init__()``.
            AssertionError: The name is taken.
        """
        for attribute, what in (("_models", "model"), ("_optims", "optim"), ("_scheds", "sched")):
            if attribute not in self.__dict__:
                raise AttributeError(f"Cannot assign {what} before super().__init__() call")
        if name in self._models:
            raise AssertionError("Found duplicate model names")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """Return all registered names, or the given one(s) after a check that they are registered."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            assert name in self._models, f"no model is registered as {name!r}; there are {list(self._models)}"
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Switch registered models to ``train`` or ``test``/``eval`` mode."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(mode)
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Checkpoints

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write one checkpoint per registered model into ``directory/<name>/``.

        Beside Dassl's five entries it holds what an exact resume needs: ``rng_state``, ``best_result`` and, with mixed
        precision, ``scaler`` (trainers may add to it). All of it loads with ``weights_only=True``.

        Args:
            epoch: 0-based epoch that has just ended; the file says ``epoch + 1``.
            directory: Output folder.
            is_best: Also write ``model-best.pth.tar``.
            val_result: Validation accuracy in percent, or None.
            model_name: File name; default ``model.pth.tar-<epoch + 1>``.
        """
        extra = self._run_state_to_save()
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": None if val_result is None else float(val_result),
                **extra,
            }
            save_checkpoint(state, osp.join(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume every registered model from ``directory/<name>/`` if all of them have a checkpoint.

        Returns:
            Number of finished epochs; 0 without checkpoints.

        Raises:
            ValueError: The models' checkpoints are of different epochs.
        """
        folders = {name: osp.join(directory, name) for name in self.get_model_names()}
        if not folders or not all(_holds_checkpoint(folder) for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        epochs = {}
        for name, folder in folders.items():
            checkpoint = read_for_resume(folder)
            epochs[name] = resume_from_state(checkpoint, self._models[name], self._optims[name], self._scheds[name])
        if len(set(epochs.values())) > 1:
            raise ValueError(
                f"the checkpoints in {directory} are of different epochs ({epochs}); write the name of a file that "
                f"all of them have into each <model>/checkpoint file"
            )
        self._restore_run_state(checkpoint)
        return checkpoint["epoch"]

    def _run_state_to_save(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights and Dassl's other entries; plain containers and tensors."""
        extra = {"rng_state": get_rng_state(), "best_result": float(getattr(self, "best_result", -float("inf")))}
        scaler = getattr(self, "scaler", None)
        if scaler is not None:
            extra["scaler"] = scaler.state_dict()
        return extra

    def _restore_run_state(self, checkpoint: dict[str, Any]) -> None:
        """Random states, best result and loss scaler, as far as the checkpoint has them (Dassl's own has none)."""
        scaler = getattr(self, "scaler", None)
        if scaler is not None and checkpoint.get("scaler"):
            scaler.load_state_dict(checkpoint["scaler"])
        if checkpoint.get("best_result") is not None:
            self.best_result = checkpoint["best_result"]
        if checkpoint.get("rng_state") is not None:
            set_rng_state(checkpoint["rng_state"])

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of every registered model from ``directory/<name>/``, strictly.

        Args:
            directory: Output folder of a run; empty skips loading.
            epoch: ``model.pth.tar-<epoch>``; None takes ``model-best.pth.tar``.

        Raises:
            FileNotFoundError: A file is missing.
        """
        if not directory:
            print(
                "Note that load_model() is skipped as no pretrained model is given "
                "(ignore this if it's done on purpose)"
            )
            return
        file_name = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            path = osp.join(directory, name, file_name)
            if not osp.exists(path):
                raise FileNotFoundError(f"No model at {path}")
            checkpoint = load_checkpoint(path)
            result = checkpoint.get("val_result")
            result = "None" if result is None else f"{result:.1f}"
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}, val_result={result})")
            self._models[name].load_state_dict(checkpoint["state_dict"])

    # Optimisation

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedules; trainers call it on the last batch of an epoch."""
        for name in self.get_model_names(names):
            if (sched := self._scheds[name]) is not None:
                sched.step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise FloatingPointError if the loss is not finite."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        """Clear the gradients."""
        for name in self.get_model_names(names):
            if (optim := self._optims[name]) is not None:
                optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Check the loss and back-propagate it."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        """Step the optimisers."""
        for name in self.get_model_names(names):
            if (optim := self._optims[name]) is not None:
                optim.step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        """Clear the gradients, back-propagate, step."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # Tensorboard

    def init_writer(self, log_dir: str) -> None:
        """Open the tensorboard writer, once."""
        if self.__dict__.get("_writer") is not None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("training curves need tensorboard: pip install tensorboard") from None
        print(f"Initialize tensorboard (log_dir={log_dir})")
        self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        """Close the tensorboard writer if there is one."""
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write one figure to tensorboard if there is a writer."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # Life cycle

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from ``start_epoch`` up to, not including, ``max_epoch``."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        # before_train sets start_epoch when it resumes, so it is read again here.
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020 - an attribute, not self
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        """Hook before the first epoch."""

    def after_train(self) -> None:
        """Hook behind the last epoch."""

    def before_epoch(self) -> None:
        """Hook before each epoch."""

    def after_epoch(self) -> None:
        """Hook behind each epoch."""

    def run_epoch(self) -> None:
        """Train one epoch."""
        raise NotImplementedError

    def test(self) -> float:
        """Evaluate."""
        raise NotImplementedError

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        """Take a training batch apart."""
        raise NotImplementedError

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Take a test batch apart."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> Mapping[str, Tensor | float] | None:
        """Train on one batch; return named figures or None."""
        raise NotImplementedError

    def model_inference(self, input: Tensor) -> Tensor:
        """Return logits for a test input."""
        raise NotImplementedError


def _holds_checkpoint(folder: str) -> bool:
    return osp.exists(osp.join(folder, "checkpoint")) or bool(saved_epochs(folder))
