"""Training images that were not drawn as shots: what the benchmarks here choose hyper-parameters on.

No run ever sees them, so neither validation nor test images choose anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import numpy as np
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.transforms import build_transform
from dassl.utils import set_random_seed
from torch import Tensor
from yacs.config import CfgNode

import datasets  # noqa: F401
from trainers import extend_cfg
from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip
from trainers.capt.bases.learners import BaseModel, BaseSpec, build_base
from trainers.capt.bases.templates import CUSTOM_TEMPLATES
from trainers.capt.run.feature_cache import ViewDataset, encode_views
from trainers.capt.run.metrics import accuracies, confusion_report
from trainers.capt.run.pictures import read_image
from trainers.capt.run.record import code_commit
from trainers.capt.run.views import ImageTransform

__all__ = [
    "Figures",
    "Found",
    "UnusedImages",
    "configuration",
    "dataset_of",
    "encode",
    "figures",
    "heading",
    "mean_rows",
    "parser_of",
    "transform_of",
    "zero_shot",
]

Figures = tuple[float | None, ...]  # accuracy, mean per class, resolved, introduced, net ...
Found = dict[tuple[object, ...], list[Figures]]  # what a row of a table begins with, to each seed's figures


def parser_of(description: str) -> argparse.ArgumentParser:
    """The flags that all of these benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--backbone", default="ViT-B/16", help="CLIP's name or file")
    parser.add_argument("--dataset", default="Caltech101")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser


def zero_shot(args: argparse.Namespace) -> tuple[PromptedCLIP, BaseModel]:
    """CLIP, and zero-shot CLIP with the data set's prompt."""
    prompted = PromptedCLIP(load_clip(args.backbone))
    return prompted, build_base(prompted, BaseSpec(template=CUSTOM_TEMPLATES.get(args.dataset, "a photo of a {}.")))


def configuration(args: argparse.Namespace, side: int) -> CfgNode:
    """Dassl's configuration of the base half, with CLIP's pixel statistics."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.VERBOSE = False
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.SUBSAMPLE_CLASSES = args.dataset, args.root, "base"
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION, cfg.INPUT.TRANSFORMS = (side, side), "bicubic", ("normalize",)
    cfg.INPUT.PIXEL_MEAN = [0.48145466, 0.4578275, 0.40821073]
    cfg.INPUT.PIXEL_STD = [0.26862954, 0.26130258, 0.27577711]
    return cfg


def dataset_of(cfg: CfgNode, shots: int, seed: int) -> DatasetBase:
    """The data set as a run with this seed draws it."""
    cfg = cfg.clone()
    cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
    set_random_seed(seed)
    return build_dataset(cfg)


def transform_of(cfg: CfgNode, is_train: bool) -> ImageTransform:
    """The training augmentation or the test transform."""
    transform = build_transform(cfg, is_train=is_train)
    assert transform is not None, "INPUT.NO_TRANSFORM is off"
    return transform


def encode(base: BaseModel, source: Sequence[Datum], cfg: CfgNode) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised features ``(M, D)``, class tokens ``(M, Dv)`` and labels ``(M,)`` under the test transform."""
    transform = transform_of(cfg, is_train=False)
    views = ViewDataset(source, 1, transform, transform, read_image, seed=0)
    batches = list(encode_views(base, views, torch.device("cpu"), 256, 0, "Encoding"))
    z, cls, label = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("z", "cls", "label"))
    return z, cls, label


@dataclass
class UnusedImages:
    """Features of the training split, and which of its images a run draws.

    Attributes:
        z: ``(M, D)`` normalised features of all images of the training split.
        cls: ``(M, Dv)`` their class tokens.
        labels: ``(M,)``.
        place: path of an image to its row.
    """

    z: Tensor
    cls: Tensor
    labels: Tensor
    place: dict[str, int]

    @classmethod
    def of(cls, base: BaseModel, cfg: CfgNode, seed: int) -> UnusedImages:
        """Encode the training split, and tell the base model its classes."""
        everything = dataset_of(cfg, -1, seed)
        base.set_classes(everything.classnames)
        place = {item.impath: i for i, item in enumerate(everything.train_x)}
        return cls(*encode(base, everything.train_x, cfg), place)

    def is_shot(self, shots: Sequence[Datum]) -> Tensor:
        """``(M,)`` whether an image is among ``shots``."""
        mask = torch.zeros(len(self.z), dtype=torch.bool)
        mask[[self.place[item.impath] for item in shots]] = True
        return mask


def figures(labels: Tensor, before: Tensor, after: Tensor, num_classes: int) -> Figures:
    """Accuracy, mean per class, resolved, introduced and net of predictions ``after`` against ``before``.

    The last three are None where no pair of classes is confusable before.
    """
    arrays = labels.numpy(), before.numpy(), after.numpy()
    report = confusion_report(*arrays, num_classes)
    return (*accuracies(arrays[0], arrays[2]), report.resolved, report.introduced, report.net)


def heading(args: argparse.Namespace) -> str:
    """What the figures are of."""
    return (
        f"{args.dataset}, base half, {args.shots} shots, seeds {args.seeds}, {args.backbone}, mean over seeds; images: "
        f"the training split less the shots; commit {code_commit()}"
    )


def mean_rows(found: Found) -> list[list[object]]:
    """One row a key: the key and the mean over the seeds that have a figure; nan where none has."""
    rows = {key: np.ma.masked_invalid(np.array(of_seeds, dtype=float)) for key, of_seeds in found.items()}
    return [[*key, *row.mean(axis=0).filled(np.nan)] for key, row in rows.items()]
