"""What the bank's corrections are worth before anything is trained, on training images that were not drawn as shots.

z' = norm(z + a sum_i exp(-b (1 - cos(z, u_i))) (T[label_i] - T[rival_i])) over the K representatives of a query, for
banks of errors alone and with near misses, and for representatives of the pairs {t, j} alone and among partners. The
images are the training split's less the run's shots, so neither validation nor test images choose anything.

    python benchmarks/bank_without_training.py --root DATA --backbone CLIP --dataset Caltech101 --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import numpy as np
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from dassl.data.transforms import build_transform
from dassl.utils import read_image, set_random_seed
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import normalize
from yacs.config import CfgNode

import datasets  # noqa: F401
from trainers import extend_cfg
from trainers.capt.base_models import BaseModel, BaseSpec, build_base
from trainers.capt.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.confusion_metrics import accuracies, confusion_report
from trainers.capt.feature_cache import ViewDataset, encode_views
from trainers.capt.prompted_clip import PromptedCLIP, load_clip
from trainers.capt.run_record import code_commit
from trainers.capt.semantic_miner import mine_pairs
from trainers.capt.templates import CUSTOM_TEMPLATES


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="folder of the data sets")
    parser.add_argument("--backbone", default="ViT-B/16", help="CLIP's name or file")
    parser.add_argument("--dataset", default="Caltech101")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pairs", type=int, default=5, help="P")
    parser.add_argument("--representatives", type=int, default=8, help="K")
    parser.add_argument("--sharpness", type=float, default=10.0, help="b")
    parser.add_argument("--gain", type=float, nargs="+", default=[0.05, 0.1, 0.2], help="a")
    return parser.parse_args(argv)


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


def dataset_of(cfg: CfgNode, shots: int, seed: int):
    """The data set as a run with this seed draws it."""
    cfg = cfg.clone()
    cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
    set_random_seed(seed)
    return build_dataset(cfg)


def encode(base: BaseModel, source: list, cfg: CfgNode) -> tuple[Tensor, Tensor]:
    """Normalised features ``(M, D)`` and labels ``(M,)`` under the test transform."""
    transform = build_transform(cfg, is_train=False)
    views = ViewDataset(source, 1, transform, transform, read_image, seed=0)
    batches = list(encode_views(base, views, torch.device("cpu"), 256, 0, "Encoding"))
    return torch.cat([batch.z for batch in batches]), torch.cat([batch.label for batch in batches])


@torch.no_grad()
def corrected(base: BaseModel, bank: ConfusionBank, z: Tensor, among_partners: bool, gain: float, args) -> Tensor:
    """Predictions ``(M,)`` with the bank's corrections."""
    pairs = mine_pairs(base.logits(z).softmax(dim=-1), bank.counts, args.pairs)
    partners = pairs.partners.masked_fill(~pairs.valid, -1)
    none = torch.full_like(pairs.target, -1)
    found = bank.retrieve(z, pairs.target, partners, none, args.representatives, among_partners)
    label, rival = bank.entries.label[found.entry].clamp_min(0), bank.entries.rival[found.entry].clamp_min(0)
    weight = (-args.sharpness * (1 - found.similarity)).exp() * found.valid
    texts = base.text_features
    correction = torch.einsum("bk,bkd->bd", weight, texts[label] - texts[rival])
    return base.logits(normalize(z + gain * correction, dim=-1)).argmax(dim=1)


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    args = arguments(argv)
    prompted = PromptedCLIP(load_clip(args.backbone))
    base = build_base(prompted, BaseSpec(template=CUSTOM_TEMPLATES.get(args.dataset, "a photo of a {}.")))
    cfg = configuration(args, prompted.input_size)
    everything = dataset_of(cfg, -1, args.seeds[0])
    base.set_classes(everything.classnames)
    all_z, all_labels = encode(base, everything.train_x, cfg)
    place = {item.impath: i for i, item in enumerate(everything.train_x)}

    figures: dict[tuple, list[tuple]] = {}
    for seed in args.seeds:
        shots = dataset_of(cfg, args.shots, seed).train_x
        is_shot = torch.zeros(len(all_z), dtype=torch.bool)
        is_shot[[place[item.impath] for item in shots]] = True
        z, labels = all_z[~is_shot], all_labels[~is_shot]
        before = base.logits(z).argmax(dim=1)
        views = JudgedViews.of(base.logits(all_z[is_shot]).softmax(dim=-1), all_labels[is_shot], all_z[is_shot])
        paths = [""] * int(is_shot.sum())
        for near, name in ((None, "errors"), (0.5, "errors, misses with c >= 0.5"), (0.0, "errors, all near misses")):
            bank = ConfusionBank.build(base.classnames, paths, [views], near_misses=near)
            for among in (False, True):
                for gain in args.gain:
                    after = corrected(base, bank, z, among, gain, args)
                    report = confusion_report(labels.numpy(), before.numpy(), after.numpy(), len(base.classnames))
                    row = (*accuracies(labels.numpy(), after.numpy()), report.resolved, report.introduced, report.net)
                    figures.setdefault((name, "and among partners" if among else "{t, j}", gain), []).append(row)
        plain = accuracies(labels.numpy(), before.numpy())
        figures.setdefault(("zero-shot", "", 0.0), []).append((*plain, 0.0, 0.0, 0.0))
    rows = [[*key, *np.mean(values, axis=0)] for key, values in figures.items()]
    print(
        f"{args.dataset}, base half, {args.shots} shots, seeds {args.seeds}, {args.backbone}, mean over seeds; images: "
        f"the training split less the shots; commit {code_commit()}"
    )
    header = ["bank", "pairs", "a", "accuracy", "mean per class", "resolved", "introduced", "net"]
    print(
        tabulate(sorted(rows, key=lambda r: r[:3]), header, floatfmt=("", "", ".2f", *[".2f"] * 5), tablefmt="github")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
