"""What a run sees: features of its shots; and of the test images of both halves, for the report alone."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from dassl.data.transforms import build_transform
from dassl.utils import read_image
from torch import Tensor
from unused_images import configuration, dataset_of, parser_of
from yacs.config import CfgNode

from trainers.capt.bank.prompt_library import PromptLibrary, encode_pairs
from trainers.capt.bases.base_model import BaseModel
from trainers.capt.run.feature_cache import FeatureCache, ViewBatch, ViewEncoder
from trainers.capt.run.record import code_commit
from trainers.capt.run.yaml_file import merge_yaml

__all__ = ["HALVES", "Classes", "encoder", "features", "run_cfg", "run_heading", "run_parser"]

ROOT = Path(__file__).resolve().parents[1]
HALVES = ("base", "new")


def run_parser(description: str) -> argparse.ArgumentParser:
    """The flags of all benchmarks, and the yaml that says how a run looks at images."""
    parser = parser_of(description)
    parser.add_argument("--config", default=str(ROOT / "configs/trainers/CAPT/vit_b16_ep20.yaml"), help="CAPT's yaml")
    return parser


def run_cfg(args: argparse.Namespace, side: int, half: str) -> CfgNode:
    """The configuration of a run on one half of the classes."""
    cfg = configuration(args, side)
    merge_yaml(cfg, args.config)
    cfg.INPUT.SIZE, cfg.DATASET.SUBSAMPLE_CLASSES = (side, side), half
    return cfg


def run_heading(args: argparse.Namespace) -> str:
    """What the figures are of."""
    return f"{args.dataset}, {args.shots} shots, seeds {args.seeds}, {Path(args.backbone).name}; commit {code_commit()}"


def encoder(cfg: CfgNode, seed: int) -> ViewEncoder:
    """How a run with this seed looks at images."""
    transforms = build_transform(cfg, is_train=False), build_transform(cfg, is_train=True)
    return ViewEncoder(*transforms, read_image, seed, torch.device("cpu"), 250, 0)


def features(base: BaseModel, cfg: CfgNode, seed: int, items: list, num_views: int = 1) -> ViewBatch:
    """Features of the views of these items, those of one image behind one another."""
    return FeatureCache(encoder(cfg, seed)(base, items, num_views, "Encoding"), num_views).rows


@dataclass(frozen=True)
class Classes:
    """What there is to tell apart, and what is said of it.

    Attributes:
        names: C names.
        texts: ``(C, D)`` normalised T.
        difference: ``(C, C, D)`` prompt features D[t|j].
        commonality: ``(C, C, D)`` prompt features K[t, j].
        is_described: ``(C, C)`` whether the data set's file holds the pair, templates aside.
    """

    names: list[str]
    texts: Tensor
    difference: Tensor
    commonality: Tensor
    is_described: Tensor

    @classmethod
    def of(cls, base: BaseModel, names: list[str], dataset: str) -> Classes:
        """Encode names and sentences."""
        library = PromptLibrary(ROOT / "descriptions", dataset)
        difference, commonality, _ = encode_pairs(library, names, base.encode_sentences)
        sources = [[t != j and library.prompts(t, j).sources[0] == "pairs file" for j in names] for t in names]
        return cls(list(names), base.encode_classes(names), difference, commonality, torch.tensor(sources))

    def take(self, index: Tensor) -> Classes:
        """Those of these classes alone."""
        pairs = (x[index][:, index] for x in (self.difference, self.commonality, self.is_described))
        return Classes([self.names[i] for i in index.tolist()], self.texts[index], *pairs)

    @staticmethod
    def test(base: BaseModel, args: argparse.Namespace, side: int, half: str) -> tuple[Classes, ViewBatch]:
        """The classes of a half, and its test images."""
        cfg = run_cfg(args, side, half)
        dataset = dataset_of(cfg, args.shots, args.seeds[0])
        return Classes.of(base, dataset.classnames, args.dataset), features(base, cfg, args.seeds[0], dataset.test)
