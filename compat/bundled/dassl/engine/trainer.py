"""Trainers with one data set and one evaluator: resume, epochs, tests, checkpoints."""

import datetime
import os.path as osp
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from yacs.config import CfgNode

from ..data import DataManager
from ..evaluation import build_evaluator
from ..optim import build_lr_scheduler, build_optimizer
from ..utils import count_num_param, load_pretrained_weights, mkdir_if_missing
from .epoch_meters import EpochMeters
from .simple_net import SimpleNet
from .trainer_base import TrainerBase

__all__ = ["SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]


class Loader(Protocol):
    """What an epoch goes through: a ``DataLoader``, or something that gives such batches."""

    def __len__(self) -> int:
        """Number of batches."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Go through the batches."""


class SimpleTrainer(TrainerBase):
    """Trainer with one data set, one evaluator, and tests at the end.

    Args:
        cfg: Configuration.
    """

    model: nn.Module
    optim: Optimizer | None
    sched: LRScheduler | None
    train_loader_x: Loader
    batch_idx: int
    num_batches: int

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -float("inf")

    def check_cfg(self, cfg: CfgNode) -> None:
        """Hook: refuse a configuration that does not fit (``self.cfg`` is not set yet)."""

    def build_data_loader(self) -> None:
        """Build the loaders and what the trainer knows of the data."""
        self.dm = dm = DataManager(self.cfg)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname
        self.num_source_domains = dm.num_source_domains

    def build_model(self) -> None:
        """Build and register the model; here a ``SimpleNet``."""
        print("Building model")
        model = SimpleNet(self.cfg, self.cfg.MODEL, self.num_classes)
        initial_weights = self.cfg.MODEL.INIT_WEIGHTS
        if initial_weights:
            load_pretrained_weights(model, initial_weights)
        self.model = model.to(self.device)
        print(f"# params: {count_num_param(model):,}")
        optim = build_optimizer(model, self.cfg.OPTIM)
        sched = build_lr_scheduler(optim, self.cfg.OPTIM)
        self.register_model("model", model=model, optim=optim, sched=sched)
        self.optim, self.sched = optim, sched
        num_devices = torch.cuda.device_count()
        if self.device.type == "cuda" and num_devices > 1:
            print(f"Detected {num_devices} GPUs (use nn.DataParallel)")
            self.model = nn.DataParallel(self.model)

    def train(self) -> None:  # type: ignore[override]  # Dassl's own: no arguments from here on
        """Run from ``start_epoch`` to ``max_epoch``."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume if there is a checkpoint, open the writer, start the clock."""
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        writer_dir = osp.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def after_epoch(self) -> None:
        """Validate and save as configured."""
        cfg = self.cfg
        is_last_epoch = self.epoch + 1 == self.max_epoch
        freq = cfg.TRAIN.CHECKPOINT_FREQ
        if not cfg.TEST.NO_TEST and cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
        if is_last_epoch or (freq > 0 and (self.epoch + 1) % freq == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Test the final model and stop the clock."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on ``val`` or ``test``.

        Args:
            split: Default TEST.SPLIT. ``val`` without a validation set means ``test``.

        Returns:
            The first result of the evaluator (accuracy in percent).
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = self.cfg.TEST.SPLIT if split is None else split
        if split == "val" and self.val_loader is not None:
            loader = self.val_loader
        else:
            split, loader = "test", self.test_loader
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader, disable=None):  # None: no bar where stderr is not a terminal
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the model's logits."""
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 3, H, W)`` and labels ``(B,)`` on the device."""
        return self._to_device(batch["img"]), self._to_device(batch["label"])

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Learning rate of the first parameter group of the first model."""
        name = self.get_model_names(names)[0]
        optim = self._optims[name]
        assert optim is not None, f"{name} has no optimiser"
        return optim.param_groups[0]["lr"]

    def _to_device(self, tensor: Tensor) -> Tensor:
        # non_blocking overlaps the copy with computation where the loader pinned the memory.
        return tensor.to(self.device, non_blocking=True)


class TrainerX(SimpleTrainer):
    """Trainer over labelled data."""

    def run_epoch(self) -> None:
        """Call ``forward_backward`` on every batch of ``train_loader_x``, log and write figures."""
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        meters = EpochMeters(self)
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020 - an attribute, not self
            meters.got_data()
            meters.trained(self.forward_backward(batch))

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return images, labels and domains on the device."""
        return tuple(self._to_device(batch[key]) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trainer over labelled and unlabelled data."""

    def run_epoch(self) -> None:
        """Call ``forward_backward(batch_x, batch_u)``; the shorter loader starts again when it is through."""
        self.set_model_mode("train")
        loader_x, loader_u = self.train_loader_x, self.train_loader_u
        assert loader_u is not None, "the data set has no unlabelled images"
        len_x, len_u = len(loader_x), len(loader_u)
        lengths = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        count = self.cfg.TRAIN.COUNT_ITER
        if count not in lengths:
            raise ValueError(f"TRAIN.COUNT_ITER must be one of {list(lengths)}, got {count!r}")
        self.num_batches = lengths[count]
        meters = EpochMeters(self)
        batches_x, batches_u = _endless(loader_x), _endless(loader_u)
        for self.batch_idx in range(self.num_batches):  # noqa: B020 - an attribute, not self
            batch_x, batch_u = next(batches_x), next(batches_u)
            meters.got_data()
            meters.trained(self.forward_backward(batch_x, batch_u))

    def forward_backward(  # type: ignore[override]  # Dassl's own: two batches
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> Mapping[str, Tensor | float] | None:
        """Train on two batches; return named figures or None."""
        raise NotImplementedError

    def parse_batch_train(  # type: ignore[override]  # as forward_backward
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return labelled images, their labels, and unlabelled images on the device."""
        return self._to_device(batch_x["img"]), self._to_device(batch_x["label"]), self._to_device(batch_u["img"])


def _endless(loader: Loader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader
