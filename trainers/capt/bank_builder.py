"""From training images to a Confusion Bank: who judges them, on which images, in how many views."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from dassl.data.data_manager import build_data_loader
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from yacs.config import CfgNode

from .base_models import BaseModel, BaseSpec, build_base
from .confusion_bank import ConfusionBank, JudgedViews
from .feature_cache import ViewBatch

__all__ = ["bank_fingerprint", "build_bank", "fit_fold", "fold_of"]


def bank_fingerprint(cfg: CfgNode, classnames: Sequence[str], base_digest: str) -> dict[str, Any]:
    """What a bank depends on; equal fingerprints, equal banks."""
    node = cfg.TRAINER.CAPT
    return {
        "dataset": cfg.DATASET.NAME,
        "seed": cfg.SEED,
        "shots": cfg.DATASET.NUM_SHOTS,
        "bank_shots": node.BANK.SHOTS,
        "classes": hashlib.sha256(json.dumps(list(classnames)).encode()).hexdigest(),
        "base": node.BASE.NAME,
        "base_weights": base_digest,
        "template": node.BASE.TEMPLATE,
        "source": node.BANK.SOURCE,
        "views": node.BANK.VIEWS,
        "counts": node.BANK.COUNTS,
        "near_misses": node.BANK.NEAR_MISSES,
        "folds": _fold_protocol(node.BANK) if node.BANK.SOURCE == "crossfit" else "",
    }


def _fold_protocol(bank: CfgNode) -> str:
    """How the bases of the folds are trained: their number, and their configuration's content."""
    config = Path(bank.FOLD_CONFIG).read_bytes() if bank.FOLD_CONFIG else b""
    return f"{bank.FOLDS}-{hashlib.sha256(config).hexdigest()[:16]}"


def build_bank(
    classnames: Sequence[str],
    paths: Sequence[str],
    views: Iterable[ViewBatch],
    judge: Callable[[ViewBatch], Tensor],
    *,
    soft_counts: bool,
    near_misses: float | None,
    fingerprint: dict[str, Any],
) -> ConfusionBank:
    """File what the judge confuses.

    Args:
        classnames: C names.
        paths: image path of each data-set index.
        views: base-model features of the views, batch by batch.
        judge: confidences ``(B, C)`` for a batch.
        soft_counts: see :meth:`ConfusionBank.build`.
        near_misses: see :meth:`ConfusionBank.build`.
        fingerprint: see :func:`bank_fingerprint`.
    """
    return ConfusionBank.build(
        classnames,
        paths,
        _judged(views, judge),
        soft_counts=soft_counts,
        near_misses=near_misses,
        fingerprint=fingerprint,
    )


def _judged(views: Iterable[ViewBatch], judge: Callable[[ViewBatch], Tensor]) -> Iterator[JudgedViews]:
    for batch in views:
        tokens = {} if batch.tokens is None else {"cls": batch.cls, "tokens": batch.tokens}
        yield JudgedViews.of(judge(batch), batch.label, batch.z, index=batch.index, view=batch.view, **tokens)


def fold_of(labels: Sequence[int], num_folds: int, seed: int) -> Tensor:
    """``(num_images,)`` the fold of each image, balanced within every class, from the seed alone."""
    labels = torch.as_tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(abs(seed)))
    by_class = order[labels[order].argsort(stable=True)]  # shuffled, then grouped by class
    fold = torch.empty(len(labels), dtype=torch.long)
    fold[by_class] = torch.arange(len(labels)) % num_folds
    return fold


def fit_fold(
    cfg: CfgNode, kept: Sequence[Any], directory: Path, prompted: torch.nn.Module, spec: BaseSpec
) -> BaseModel:
    """Train the base learner anew on the images ``kept`` by the host's own trainer, and load it as a base model.

    Args:
        cfg: the run's configuration; ``BANK.FOLD_CONFIG`` holds the base learner's own.
        kept: training items that this base may see.
        directory: its output folder; a finished run on these images with this configuration is taken as it is.
        prompted: the frozen CLIP.
        spec: the base learner; its folder is replaced by ``directory``.
    """
    # Named by its images, so that a fold of another draw, which may have seen them all, is never taken for this one.
    seen = json.dumps([sorted(item.impath for item in kept), _fold_protocol(cfg.TRAINER.CAPT.BANK), cfg.SEED])
    directory = directory.with_name(f"{directory.name}-{hashlib.sha256(seen.encode()).hexdigest()[:12]}")
    fold_cfg = cfg.clone()
    fold_cfg.defrost()
    fold_cfg.merge_from_file(cfg.TRAINER.CAPT.BANK.FOLD_CONFIG)
    fold_cfg.TRAINER.NAME = spec.name
    fold_cfg.OUTPUT_DIR = str(directory)
    fold_cfg.RESUME = ""
    fold_cfg.TEST.NO_TEST = True
    fold_cfg.TEST.FINAL_MODEL = "last_step"
    fold_cfg.freeze()
    trainer = TRAINER_REGISTRY.get(spec.name)(fold_cfg)
    loader_cfg = fold_cfg.DATALOADER.TRAIN_X
    trainer.train_loader_x = build_data_loader(
        fold_cfg,
        sampler_type=loader_cfg.SAMPLER,
        data_source=list(kept),
        batch_size=loader_cfg.BATCH_SIZE,
        tfm=trainer.train_loader_x.dataset.transform,
        is_train=True,
    )
    trainer.train()
    spec = dataclasses.replace(spec, directory=str(directory), epoch=0)
    return build_base(prompted, spec)
