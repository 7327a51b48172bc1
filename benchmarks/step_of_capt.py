"""CAPT's side of ``steps.py``: a run of its own on drawn pictures, and single steps and tests of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drawn
import tiny
import torch

if TYPE_CHECKING:
    from trainers.capt import CAPT

SHOTS = 2  # a class; in one view each
BETA = 0.1  # with experts; without them, the default, nothing is trained and there is no step


def capt(about: dict[str, Any], device: str) -> tuple[CAPT, Callable[[str, int], object]]:
    """A trainer of CAPT that is about to make its first step, and what makes one.

    Ways: ``cached step`` on features that are kept, ``step`` with the image tower, ``test`` of images with the bank's
    finished features, as :meth:`CAPT.test` does it, and ``base test``, the base model's answer to them.
    """
    import compat  # noqa: F401

    from dassl.utils import set_random_seed

    from trainers.capt import CAPT

    folder = Path(tempfile.mkdtemp(prefix="capt_steps_"))
    drawn.draw(folder / "images", drawn.class_names(about["classes"]), SHOTS)
    options: dict[str, Any] = {"DATASET.NUM_SHOTS": SHOTS, "TRAINER.CAPT.CACHE.VIEWS": 1, "TRAINER.CAPT.BANK.VIEWS": 1}
    options["TRAINER.CAPT.MGDE.BETA"] = BETA
    cfg = drawn.configuration(folder, Path(about["clip"]), device, options)
    set_random_seed(cfg.SEED)
    trainer = CAPT(cfg)
    trainer.before_train()
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
    trainer.before_epoch()
    miner, bank, cache = trainer.model.sample_miner, trainer.model.bank, trainer.cache
    assert miner is not None
    assert bank is not None
    assert cache is not None
    miner.settle(bank, trainer.model.base.project)
    settled = bank.confusion_features

    def step(way: str, size: int) -> object:
        bank.confusion_features = settled if way == "test" else None
        index = torch.arange(size) % len(cache)
        if way == "cached step":
            return trainer.forward_backward({"features": cache.take(index, torch.zeros_like(index))})
        images = torch.randn(size, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(size))
        if way == "step":
            label = cache.rows.label[index]
            return trainer.forward_backward({"img": images, "label": label, "index": index})
        with torch.no_grad():
            if way == "test":
                return trainer.inference(images.to(device))
            base = trainer.model.base
            feature = base.encode_image(images.to(device)).feature
            return base.logits(torch.nn.functional.normalize(feature.float(), dim=-1))

    return trainer, step
