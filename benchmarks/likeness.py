"""By what images are compared and how the gain is chosen, on training images that were not drawn as shots.

A run of CAPT at its defaults, shift, bank and gain, and its answers. One thing is changed at a time: the layout of
patch tokens beside the class token and its sizes, the shrinkage, and by how many standard errors a smaller gain may be
worse than the best.

    python benchmarks/likeness.py --root DATA --backbone CLIP --dataset Caltech101 --shots 16 --seeds 1 2 3
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from unused_images import Found, dataset_of, figures, mean_rows, zero_shot  # isort: skip - makes dassl importable
from run_features import features, rows_of, run_cfg, run_heading, run_parser, tokens_of
from tabulate import tabulate
from torch import Tensor

from trainers.capt.backbone import layout
from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bank.pair_features import PairFeatures
from trainers.capt.bases.learners import BaseModel
from trainers.capt.method import gain as gain_module
from trainers.capt.method.model import CAPTModel, CAPTSettings
from trainers.capt.method.shift_choice import set_shift
from trainers.capt.method.systematic import SystematicShift
from trainers.capt.run.feature_cache import ViewBatch, hash_seed

NUM_VIEWS = 4
LARGEST_GAIN = 2.4


@dataclass(frozen=True)
class Variant:
    """What is changed; the defaults are the package's."""

    name: str
    cells: int = layout.CELLS  # a side; 0 for class tokens alone
    numbers: int = layout.NUMBERS
    shrinkage: float = 0.5
    errors: float = gain_module.ERRORS


def variants() -> list[Variant]:
    """The defaults, and one change at a time."""
    default = Variant("defaults")
    return [
        default,
        replace(default, name="class tokens alone", cells=0),
        replace(default, name="class tokens alone, shrinkage 0.3, best gain", cells=0, shrinkage=0.3, errors=0.0),
        *(replace(default, name=f"{cells} x {cells} cells", cells=cells) for cells in (1, 2, 3, 6)),
        *(replace(default, name=f"{numbers} numbers a cell", numbers=numbers) for numbers in (8, 16, 64)),
        *(replace(default, name=f"shrinkage {value:g}", shrinkage=value) for value in (0.1, 0.3, 0.7, 1.0)),
        *(replace(default, name=f"gain within {value:g} errors", errors=value) for value in (0.0, 1.0, 3.0)),
    ]


@contextmanager
def constants(variant: Variant) -> Iterator[None]:
    """The package's numbers as the variant has them."""
    before = layout.CELLS, layout.NUMBERS, gain_module.ERRORS
    layout.CELLS, layout.NUMBERS, gain_module.ERRORS = max(1, variant.cells), variant.numbers, variant.errors
    try:
        yield
    finally:
        layout.CELLS, layout.NUMBERS, gain_module.ERRORS = before


def first_views(rows: ViewBatch) -> ViewBatch:
    """The plain views of the shots."""
    return rows.each(lambda value: value[::NUM_VIEWS])


@torch.no_grad()
def answers(
    base: BaseModel, systematic: SystematicShift, shots: ViewBatch, unused: ViewBatch, variant: Variant
) -> tuple[Tensor, float]:
    """Predictions ``(M,)`` for the unused images, and the gain; ``shots`` are plain views."""
    names = base.classnames
    cls, tokens = tokens_of(shots)
    with constants(variant):
        probs = base.logits(shots.z, systematic(shots.z)).softmax(dim=-1)
        cells = {"layout": layout.patch_layout(tokens)} if variant.cells else {}
        views = JudgedViews.of(probs, shots.label, shots.z, index=shots.index, cls=cls, **cells)
        paths = [str(index) for index in range(int(shots.index.max()) + 1)]
        bank = ConfusionBank.build(names, paths, [views], near_misses=0.0, shrinkage=variant.shrinkage)
        model = CAPTModel(base, CAPTSettings(use_mgde=False)).eval()
        model.refiner.systematic = systematic
        model.set_classes(names, PairFeatures(names, nothing, base.embed_dim, max_gigabytes=0.1), bank)
        gain, _ = gain_module.fit_gain(model, [shots], torch.arange(len(paths)), LARGEST_GAIN)
        model.refiner.expert.gain.fill_(gain)
        parts = [rows_of(unused, part) for part in torch.arange(len(unused.z)).split(500)]
        found = [model(part.z, part.cls, part.tokens).logits.argmax(dim=1) for part in parts]
    return torch.cat(found), gain


def nothing(*_: object) -> NoReturn:
    """No pair is encoded without experts."""
    raise AssertionError("without experts nothing is said of pairs")


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    args = run_parser(__doc__.splitlines()[0]).parse_args(argv)
    prompted, base = zero_shot(args)
    cfg = run_cfg(args, prompted.input_size, "base")
    found: Found = {}
    for seed in args.seeds:
        source = dataset_of(cfg, args.shots, seed)
        base.set_classes(source.classnames)
        rows = features(base, cfg, seed, source.train_x, NUM_VIEWS)
        drawn = {item.impath for item in source.train_x}
        others = [item for item in dataset_of(cfg, -1, seed).train_x if item.impath not in drawn]
        unused = features(base, cfg, seed, others[:: max(1, len(others) // 3000)])
        systematic = SystematicShift(base.embed_dim)
        set_shift(systematic, base, [rows], base, [rows], hash_seed(seed, 3))
        before = base.logits(unused.z).argmax(dim=1)
        for variant in variants():
            after, gain = answers(base, systematic, first_views(rows), unused, variant)
            row = *figures(unused.label, before, after, len(base.classnames)), gain
            found.setdefault((variant.name,), []).append(row)
    print(run_heading(args))
    header = ["changed", "accuracy", "mean per class", "resolved", "introduced", "net", "gain"]
    print(tabulate(mean_rows(found), header, floatfmt=("", *[".2f"] * 6), tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
