"""What a run sees: features of its shots; and of the test images of both halves, for the report alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from dassl.data.datasets import Datum
from torch import Tensor
from unused_images import configuration, dataset_of, parser_of, transform_of
from yacs.config import CfgNode

from trainers.capt.bank.pair_features import PairFeatures
from trainers.capt.bank.prompt_library import PromptLibrary, encode_pairs
from trainers.capt.bases.base_model import BaseModel
from trainers.capt.run.feature_cache import FeatureCache, ViewBatch, ViewEncoder
from trainers.capt.run.pictures import read_image
from trainers.capt.run.record import code_commit
from trainers.capt.run.yaml_file import merge_yaml

__all__ = ["HALVES", "Classes", "encoder", "features", "rows_of", "run_cfg", "run_heading", "run_parser", "tokens_of"]

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
    transforms = transform_of(cfg, is_train=False), transform_of(cfg, is_train=True)
    return ViewEncoder(*transforms, read_image, seed, torch.device("cpu"), 250, 0)


def features(base: BaseModel, cfg: CfgNode, seed: int, items: Sequence[Datum], num_views: int = 1) -> ViewBatch:
    """Features of the views of these items, those of one image behind one another."""
    return FeatureCache(encoder(cfg, seed)(base, items, num_views, "Encoding"), num_views).rows


def rows_of(rows: ViewBatch, which: Tensor) -> ViewBatch:
    """Rows by mask or place."""
    return rows.each(lambda value: value[which])


def tokens_of(rows: ViewBatch) -> tuple[Tensor, Tensor]:
    """Class tokens ``(n, Dv)`` and patch tokens ``(n, N, Dv)``.

    Raises:
        ValueError: they are a ResNet's features.
    """
    if rows.cls is None or rows.tokens is None:
        raise ValueError("a ResNet has no patch tokens, which are compared here; give --backbone a ViT")
    return rows.cls, rows.tokens


def pairs_of(num_classes: int) -> tuple[Tensor, Tensor]:
    """t and j of all ordered pairs."""
    t, j = torch.cartesian_prod(torch.arange(num_classes), torch.arange(num_classes)).t()
    return t[t != j], j[t != j]


def every_pair(library: PromptLibrary, names: list[str], base: BaseModel) -> tuple[Tensor, Tensor]:
    """Difference and commonality ``(C, C, D)``, diagonals zero; for tables of forms that look at pairs nobody mined."""
    target, partners = pairs_of(len(names))
    pairs = [(names[t], names[j]) for t, j in zip(target.tolist(), partners.tolist(), strict=True)]
    tables = []
    for rows in encode_pairs(library, pairs, base.encode_sentences)[:2]:
        tables.append(rows.new_zeros(len(names), len(names), rows.shape[1]))
        tables[-1][target, partners] = rows
    return tables[0], tables[1]


def no_other(pairs: Sequence[tuple[str, str]], title: str | None) -> NoReturn:
    """What a model asks for whose pairs are all there."""
    raise AssertionError(f"every pair is there, and not {pairs[0]}?")


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
        difference, commonality = every_pair(library, names, base)
        sources = [[t != j and library.prompts(t, j).sources[0] == "pairs file" for j in names] for t in names]
        return cls(list(names), base.encode_classes(names), difference, commonality, torch.tensor(sources))

    def take(self, index: Tensor) -> Classes:
        """Those of these classes alone."""
        pairs = (x[index][:, index] for x in (self.difference, self.commonality, self.is_described))
        return Classes([self.names[i] for i in index.tolist()], self.texts[index], *pairs)

    def features(self) -> PairFeatures:
        """The same for a model to look up; nothing is encoded for it."""
        found = PairFeatures(self.names, no_other, self.texts.shape[1], max_gigabytes=64)
        target, partners = pairs_of(len(self.names))
        found.put(target, partners, self.difference[target, partners], self.commonality[target, partners])
        return found

    @staticmethod
    def test(base: BaseModel, args: argparse.Namespace, side: int, half: str) -> tuple[Classes, ViewBatch]:
        """The classes of a half, and its test images."""
        cfg = run_cfg(args, side, half)
        dataset = dataset_of(cfg, args.shots, args.seeds[0])
        return Classes.of(base, dataset.classnames, args.dataset), features(base, cfg, args.seeds[0], dataset.test)
