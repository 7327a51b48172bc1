"""What the bank's corrections are worth before anything is trained, on training images that were not drawn as shots.

z' = norm(z + a sum_i exp(-b (1 - cos(z, u_i))) (T[label_i] - T[rival_i])) over the K representatives of a query, for
banks of errors alone and with near misses, and for representatives of the pairs {t, j} alone and among partners. The
images are the training split's less the run's shots, so neither validation nor test images choose anything.

    python benchmarks/bank_without_training.py --root DATA --backbone CLIP --dataset Caltech101 --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import sys

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import normalize
from unused_images import UnusedImages, configuration, dataset_of, figures, heading, mean_rows, parser_of, zero_shot

from trainers.capt.base_models import BaseModel
from trainers.capt.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.semantic_miner import mine_pairs


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="P")
    parser.add_argument("--representatives", type=int, default=8, help="K")
    parser.add_argument("--sharpness", type=float, default=10.0, help="b")
    parser.add_argument("--gain", type=float, nargs="+", default=[0.05, 0.1, 0.2], help="a")
    return parser.parse_args(argv)


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
    prompted, base = zero_shot(args)
    cfg = configuration(args, prompted.input_size)
    images = UnusedImages.of(base, cfg, args.seeds[0])

    found: dict[tuple, list[tuple]] = {}
    for seed in args.seeds:
        is_shot = images.is_shot(dataset_of(cfg, args.shots, seed).train_x)
        z, labels = images.z[~is_shot], images.labels[~is_shot]
        before = base.logits(z).argmax(dim=1)
        shots, num_classes = images.z[is_shot], len(base.classnames)
        views = JudgedViews.of(base.logits(shots).softmax(dim=-1), images.labels[is_shot], shots)
        paths = [""] * int(is_shot.sum())
        for near, name in ((None, "errors"), (0.5, "errors, misses with c >= 0.5"), (0.0, "errors, all near misses")):
            bank = ConfusionBank.build(base.classnames, paths, [views], near_misses=near)
            for among in (False, True):
                for gain in args.gain:
                    after = corrected(base, bank, z, among, gain, args)
                    key = (name, "and among partners" if among else "{t, j}", gain)
                    found.setdefault(key, []).append(figures(labels, before, after, num_classes))
        found.setdefault(("zero-shot", "", 0.0), []).append(figures(labels, before, before, num_classes))
    print(heading(args))
    header = ["bank", "pairs", "a", "accuracy", "mean per class", "resolved", "introduced", "net"]
    rows = sorted(mean_rows(found), key=lambda r: r[:3])
    print(tabulate(rows, header, floatfmt=("", "", ".2f", *[".2f"] * 5), tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
