"""What the bank's corrections are worth before anything is trained, on training images that were not drawn as shots.

z' = norm(z + a sum_i exp(-b (1 - s_i)) (T[label_i] - T[rival_i])) over the K representatives of a query: CAPT without
its experts, at the defaults, and with one thing changed at a time. The images are the training split's less the run's
shots, so neither validation nor test images choose anything.

    python benchmarks/bank_without_training.py --root DATA --backbone CLIP --dataset Caltech101 --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import normalize
from unused_images import (
    Found,
    UnusedImages,
    configuration,
    dataset_of,
    figures,
    heading,
    mean_rows,
    parser_of,
    zero_shot,
)

from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bases.learners import BaseModel
from trainers.capt.method.model import CAPTSettings
from trainers.capt.method.semantic_miner import mine_pairs

DEFAULT = CAPTSettings()


@dataclass(frozen=True)
class Variant:
    """What is changed, and the settings that it has then."""

    name: str
    near_misses: float | None = 0.0
    by_label: bool = DEFAULT.by_label
    joint_space: bool = False  # compare images by z, not by class tokens
    all_classes: bool = False  # mine nothing: every class is a partner
    num_pairs: int = DEFAULT.num_pairs
    num_representatives: int = DEFAULT.num_representatives
    gain: float = DEFAULT.gain
    sharpness: float = DEFAULT.sharpness


def variants() -> list[Variant]:
    """The defaults, and one change at a time."""
    values = {
        "num_pairs": ("P", (1, 5, 10)),
        "num_representatives": ("K", (2, 4, 16, 64)),
        "gain": ("a", (0.05, 0.1, 0.2, 0.4, 0.6, 1.0)),
        "sharpness": ("b", (3.0, 5.0, 10.0, 15.0)),
    }
    changed = [
        Variant("errors alone", near_misses=None),
        Variant("errors, and near misses with c >= 0.5", near_misses=0.5),
        Variant("entries of the mined pairs {t, j} alone", by_label=False),
        Variant("errors alone, of the mined pairs alone", near_misses=None, by_label=False),
        Variant("images compared by z less its mean", joint_space=True),
        Variant("nothing mined: entries of all classes", all_classes=True),
    ]
    default = Variant("defaults")
    for field, (letter, choices) in values.items():
        for value in choices:
            change: dict[str, Any] = {"name": f"{letter} {value:g}", field: value}
            changed.append(replace(default, **change))
    return [default, *changed]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    return parser_of(__doc__.splitlines()[0]).parse_args(argv)


@torch.no_grad()
def corrected(base: BaseModel, bank: ConfusionBank, z: Tensor, key: Tensor, variant: Variant) -> Tensor:
    """Predictions ``(M,)`` for features ``z`` ``(M, D)`` with the bank's corrections, images compared by ``key``."""
    num_pairs = bank.num_classes - 1 if variant.all_classes else variant.num_pairs
    pairs = mine_pairs(base.logits(z).softmax(dim=-1), bank.counts, num_pairs)
    partners = pairs.partners.masked_fill(~pairs.valid, -1)
    none = torch.full_like(pairs.target, -1)
    found = bank.retrieve(key, pairs.target, partners, none, variant.num_representatives, variant.by_label)
    label, rival = bank.entries.label[found.entry].clamp_min(0), bank.entries.rival[found.entry].clamp_min(0)
    weight = (-variant.sharpness * (1 - found.similarity)).exp() * found.valid
    texts = base.text_features
    correction = torch.einsum("bk,bkd->bd", weight, texts[label] - texts[rival])
    return base.logits(normalize(z + variant.gain * correction, dim=-1)).argmax(dim=1)


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    args = arguments(argv)
    prompted, base = zero_shot(args)
    cfg = configuration(args, prompted.input_size)
    images = UnusedImages.of(base, cfg, args.seeds[0])

    found: Found = {}
    for seed in args.seeds:
        is_shot = images.is_shot(dataset_of(cfg, args.shots, seed).train_x)
        labels, num_classes = images.labels[~is_shot], len(base.classnames)
        probs = base.logits(images.z).softmax(dim=-1)
        before = probs[~is_shot].argmax(dim=1)
        found.setdefault(("zero-shot CLIP",), []).append(figures(labels, before, before, num_classes))
        for variant in variants():
            key = images.z if variant.joint_space else images.cls
            views = JudgedViews.of(probs[is_shot], images.labels[is_shot], images.z[is_shot], cls=key[is_shot])
            paths = [""] * int(is_shot.sum())
            bank = ConfusionBank.build(base.classnames, paths, [views], near_misses=variant.near_misses)
            after = corrected(base, bank, images.z[~is_shot], key[~is_shot], variant)
            found.setdefault((variant.name,), []).append(figures(labels, before, after, num_classes))
    print(heading(args))
    defaults = f"P {DEFAULT.num_pairs}, K {DEFAULT.num_representatives}, a {DEFAULT.gain:g}, b {DEFAULT.sharpness:g}"
    header = [f"changed ({defaults})", "accuracy", "mean per class", "resolved", "introduced", "net"]
    print(tabulate(mean_rows(found), header, floatfmt=("", *[".2f"] * 5), tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
