"""Hyper-parameters of the feature adapters, judged on training images that were not drawn as shots.

Tip-Adapter and Tip-Adapter-F over ALPHA x BETA, the linear probe over rate x epochs, CLIP-Adapter over rate x RATIO;
everything else is as in configs/trainers/<method>/vit_b16.yaml. Only image features are used, so the small grids take
minutes on a CPU.

    python benchmarks/adapters_on_unused_images.py --root DATA --backbone CLIP --dataset Caltech101 --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import torch
from dassl.data.datasets import Datum
from dassl.optim import build_lr_scheduler, build_optimizer
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F
from unused_images import (
    Found,
    UnusedImages,
    configuration,
    dataset_of,
    figures,
    heading,
    mean_rows,
    parser_of,
    transform_of,
    zero_shot,
)
from yacs.config import CfgNode

from trainers.capt.bases.learners import BaseModel
from trainers.capt.run.feature_cache import CachedLoader, FeatureCache, ViewDataset, encode_views, hash_seed
from trainers.capt.run.pictures import read_image
from trainers.clip_adapter import Bottleneck
from trainers.feature_adapters import FeatureAdapter, features_only
from trainers.linear_probe import LinearHead
from trainers.tip_adapter import ShotCache, fine_tuning_optimizer, mean_views

METHODS = ("TipAdapter", "TipAdapterF", "LinearProbe", "CLIPAdapter")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0, 3.0, 5.0])
    parser.add_argument("--beta", type=float, nargs="+", default=[2.0, 3.0, 5.5, 10.0, 20.0, 40.0])
    parser.add_argument("--rate", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4, 1e-3])
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 50, 100], help="of the linear probe")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8])
    return parser.parse_args(argv)


def method_cfg(args: argparse.Namespace, side: int, method: str) -> CfgNode:
    """The method's yaml on this data set and CLIP."""
    cfg = configuration(args, side)
    cfg.merge_from_file(str(Path(__file__).resolve().parents[1] / f"configs/trainers/{method}/vit_b16.yaml"))
    cfg.INPUT.SIZE = (side, side)
    return cfg


def shots_cache(base: BaseModel, source: Sequence[Datum], cfg: CfgNode, num_views: int, seed: int) -> FeatureCache:
    """The cache that a run with this seed encodes."""
    transforms = transform_of(cfg, is_train=False), transform_of(cfg, is_train=True)
    views = ViewDataset(source, num_views, *transforms, read_image, seed)
    batches = encode_views(base, views, torch.device("cpu"), 100, 0, "Encoding the shots")
    return FeatureCache(features_only(batches), num_views)


def plain_optimizer(adapter: nn.Module, cfg: CfgNode) -> torch.optim.Optimizer:
    """The optimiser that OPTIM describes."""
    return build_optimizer(adapter, cfg.OPTIM)


@dataclass
class Bench:
    """One seed's run: the base model, its shots, and what a method is built from."""

    args: argparse.Namespace
    side: int
    base: BaseModel
    seed: int
    cache: FeatureCache

    def parts(self) -> tuple[list[str], Tensor, Tensor]:
        """Class names, text features and logit scale."""
        return self.base.classnames, self.base.text_features, self.base.prompted.clip.logit_scale

    def trained(
        self,
        method: str,
        build: Callable[[], FeatureAdapter],
        rate: float | None = None,
        epochs: int | None = None,
        optimizer: Callable[[nn.Module, CfgNode], torch.optim.Optimizer] = plain_optimizer,
    ) -> FeatureAdapter:
        """The adapter after training as its yaml says, but for ``rate`` and ``epochs`` where they are given."""
        cfg = method_cfg(self.args, self.side, method)
        cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH = rate or cfg.OPTIM.LR, epochs or cfg.OPTIM.MAX_EPOCH
        torch.manual_seed(hash_seed(self.seed))
        adapter = build()
        optim = optimizer(adapter, cfg)
        sched = build_lr_scheduler(optim, cfg.OPTIM)
        loader = CachedLoader(self.cache, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, self.seed)
        for loader.epoch in range(cfg.OPTIM.MAX_EPOCH):
            for batch in loader:
                views = batch["features"]
                optim.zero_grad()
                F.cross_entropy(adapter(views.z), views.label).backward()
                optim.step()
            sched.step()
        return adapter

    def shot_cache(self, alpha: float, beta: float, is_trained: bool = False) -> ShotCache:
        """Tip-Adapter's cache of the shots."""
        adapter = ShotCache(*self.parts(), len(self.cache), alpha, beta, is_trained)
        adapter.fill(*mean_views(self.cache))
        return adapter

    def candidates(self, method: str) -> Iterator[tuple[tuple[float, float], FeatureAdapter]]:
        """The method's grid: two values each, and what they give."""
        args, tip_optimizer = self.args, fine_tuning_optimizer
        if method == "TipAdapter":
            for alpha, beta in product(args.alpha, args.beta):
                yield (alpha, beta), self.shot_cache(alpha, beta)
        elif method == "TipAdapterF":
            for alpha, beta in product(args.alpha, args.beta):
                cache = partial(self.shot_cache, alpha, beta, is_trained=True)
                yield (alpha, beta), self.trained(method, cache, optimizer=tip_optimizer)
        elif method == "LinearProbe":
            for rate, epochs in product(args.rate, args.epochs):
                yield (rate, epochs), self.trained(method, lambda: LinearHead(*self.parts()), rate, epochs)
        else:
            for rate, ratio in product(args.rate, args.ratio):
                yield (rate, ratio), self.trained(method, partial(Bottleneck, *self.parts(), ratio), rate)


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    args = arguments(argv)
    prompted, base = zero_shot(args)
    side = prompted.input_size
    images = UnusedImages.of(base, configuration(args, side), args.seeds[0])
    cfg = method_cfg(args, side, args.methods[0])  # the transforms are the same for all
    num_views = 1 + cfg.TRAINER[args.methods[0].upper()].AUGMENT_EPOCHS

    found: dict[str, Found] = {method: {} for method in args.methods}
    for seed in args.seeds:
        shots = dataset_of(cfg, args.shots, seed).train_x
        is_shot = images.is_shot(shots)
        z, labels = images.z[~is_shot], images.labels[~is_shot]
        before = base.logits(z).argmax(dim=1)
        bench = Bench(args, side, base, seed, shots_cache(base, shots, cfg, num_views, seed))
        for method, rows in found.items():
            rows.setdefault(("zero-shot", ""), []).append(figures(labels, before, before, len(base.classnames)))
            for key, adapter in bench.candidates(method):
                with torch.no_grad():
                    after = adapter(z).argmax(dim=1)
                rows.setdefault(key, []).append(figures(labels, before, after, len(base.classnames)))
    print(heading(args))
    names = {"LinearProbe": ("LR", "epochs"), "CLIPAdapter": ("LR", "RATIO")}
    for method, rows in found.items():
        header = [*names.get(method, ("ALPHA", "BETA")), "accuracy", "mean per class", "resolved", "introduced", "net"]
        print(f"\n{method}\n")
        print(tabulate(mean_rows(rows), header, floatfmt=("g", "g", *[".2f"] * 5), tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
