"""A data set of small noise images and a linear model with dropout, for tests of the trainer life cycle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed
from PIL import Image

CLASSES = ["ant", "bee", "cat"]


@DATASET_REGISTRY.register()
class CompatToy(DatasetBase):
    """23 training and test images, 6 validation images, in DATASET.ROOT."""

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        generator = np.random.default_rng(0)
        items = []
        for i in range(23):
            path = root / f"{i}.png"
            if not path.exists():
                Image.fromarray(generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(path)
            items.append(Datum(str(path), i % 3, 0, CLASSES[i % 3]))
        super().__init__(train_x=items, val=items[:6], test=items)


@TRAINER_REGISTRY.register()
class CompatToyTrainer(TrainerX):
    """Linear model with dropout, registered as ``learner``, as CoOp-style trainers do it."""

    def build_model(self):
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(192, 3))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("learner", self.model, self.optim, self.sched)
        self.rates = []

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        logits = self.model(image)
        loss = torch.nn.functional.cross_entropy(logits, label)
        self.model_backward_and_update(loss)
        self.rates.append(self.get_current_lr())
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, label)[0].item()}


def toy_cfg(tmp_path, output="out", **overrides):
    """Configuration of a short run; overrides are given as ``OPTIM__MAX_EPOCH=3``."""
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    cfg = get_cfg_default()
    values = {
        "OUTPUT_DIR": str(tmp_path / output),
        "DATASET__ROOT": str(images),
        "DATASET__NAME": "CompatToy",
        "TRAINER__NAME": "CompatToyTrainer",
        "INPUT__SIZE": (8, 8),
        "INPUT__TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
        "DATALOADER__NUM_WORKERS": 0,
        "DATALOADER__TRAIN_X__BATCH_SIZE": 5,
        "OPTIM__NAME": "sgd",
        "OPTIM__LR": 0.1,
        "OPTIM__LR_SCHEDULER": "cosine",
        "OPTIM__WARMUP_EPOCH": 1,
        "OPTIM__WARMUP_TYPE": "constant",
        "OPTIM__MAX_EPOCH": 4,
        "TRAIN__CHECKPOINT_FREQ": 1,
        **overrides,
    }
    cfg.merge_from_list([x for key, value in values.items() for x in (key.replace("__", "."), value)])
    return cfg


def train(cfg, seed=1):
    """Train from scratch or resume; return the trainer."""
    set_random_seed(seed)
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def weights(trainer):
    """The trained weight matrix."""
    return trainer.model[2].weight.detach().clone()
