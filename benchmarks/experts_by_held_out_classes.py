"""What the paper's mixture of experts is worth on classes that it was not trained on, and on those that it was.

Held out: adapter and mixture are trained on one half of the run's base classes, with the bank of these, and measured on
the other half's shots in its own label space, where the bank knows nothing: so the evidence gate, which would silence
the experts there, is off. The mixture is trained at the default beta; its strengths are the betas that its residual is
scaled to afterwards (a residual of another beta is this one times a number), against beta 0, the shift alone.
Known: trained on all base classes at the defaults (gate on), measured on training images that were not drawn as shots,
on top of the shift and the bank's corrections. Test images are not looked at.

    python benchmarks/experts_by_held_out_classes.py --root DATA --backbone CLIP --dataset Caltech101 --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import numpy as np
import torch
from dassl.optim import build_lr_scheduler, build_optimizer
from run_features import Classes, features, rows_of, run_cfg, run_heading, run_parser, tokens_of
from tabulate import tabulate
from torch import Tensor
from unused_images import Figures, Found, dataset_of, figures, mean_rows, zero_shot
from yacs.config import CfgNode

from trainers.capt.backbone.layout import patch_layout
from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bases.base_model import BaseModel
from trainers.capt.config import settings_from
from trainers.capt.method.experts import move
from trainers.capt.method.gain import fit_gain
from trainers.capt.method.held_out_classes import Half, HeldOutChoice, halvings, held_out_gains
from trainers.capt.method.model import CAPTModel
from trainers.capt.method.shift_choice import choose_penalty
from trainers.capt.method.start import start_sample_expert, start_semantic_experts
from trainers.capt.method.systematic import fit_shift
from trainers.capt.run.feature_cache import ViewBatch, hash_seed

EPISODES = ("no", "subsets", "subsets without bank")
TRAINED_BETA = 0.1  # the strength that the experts are trained at


@dataclass(frozen=True)
class Variant:
    """What is changed in how the mixture is built and trained.

    Attributes:
        keep: LOSS.KEEP.
        hidden_ratio: hidden width of an expert over D.
        confuse: lambda, LOSS.CONFUSE.
        episodes: whether a batch is told apart among all classes, or among half of them drawn anew each epoch; with
            the bank, or without it, as classes that it does not know are served.
    """

    keep: float
    hidden_ratio: int = 4
    confuse: float = 1.0
    episodes: str = "no"


def variants(keeps: list[float]) -> list[Variant]:
    """With each of these weights, the defaults and one change at a time."""
    changes: list[dict[str, Any]] = [{}, {"hidden_ratio": 1}, {"confuse": 0.0}]
    changes += [{"episodes": name} for name in EPISODES[1:]]
    return [Variant(keep, **change) for keep in keeps for change in changes]


@dataclass(frozen=True)
class Shots:
    """Some classes and the views of their images, those of one image behind one another; label counts ``classes``."""

    classes: Classes
    rows: ViewBatch
    num_views: int

    def within(self, classes: Tensor) -> Shots:
        """Those of these classes (ascending) alone."""
        rows = rows_of(self.rows, torch.isin(self.rows.label, classes))
        return Shots(self.classes.take(classes), relabelled(rows, classes), self.num_views)

    @property
    def first(self) -> ViewBatch:
        """One view of each image, under the test transform."""
        return rows_of(self.rows, self.rows.view == 0)


def relabelled(rows: ViewBatch, classes: Tensor) -> ViewBatch:
    """The same with labels that count ``classes`` (ascending)."""
    return replace(rows, label=torch.searchsorted(classes, rows.label))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = run_parser(__doc__.splitlines()[0])
    parser.add_argument("--halvings", type=int, default=3, help="of the base classes, each both ways")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--views", type=int, default=4, help="of a shot")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0], help="ascending, 0 aside")
    parser.add_argument("--keeps", type=float, nargs="+", default=[300.0, 0.0], help="values of LOSS.KEEP")
    return parser.parse_args(argv)


# ------------------------------------------------------------------------------------------------------------ training


def trained(base: BaseModel, cfg: CfgNode, shots: Shots, penalty: float | None, seed: int, episodes: str) -> CAPTModel:
    """CAPT as a run on these shots leaves it, serving their classes with their bank.

    Args:
        base: zero-shot CLIP.
        cfg: the run's configuration.
        shots: what it is trained on.
        penalty: of the shift; None for none.
        seed: the run's.
        episodes: see :class:`Variant`.
    """
    torch.manual_seed(hash_seed(seed))
    model, classes = CAPTModel(base, settings_from(cfg.TRAINER.CAPT)), shots.classes
    systematic = model.refiner.systematic
    if penalty is not None:
        rows, scale = shots.rows, float(base.logit_scale)
        systematic.shift.copy_(fit_shift(rows.z, rows.label, classes.texts, [penalty], scale)[0])
    serve(model, classes, None)
    bank = bank_of(base, systematic, shots, cfg.TRAINER.CAPT.SAM.SHRINKAGE)
    serve(model, classes, bank)
    places = torch.arange(len(bank.paths))
    gain, _ = fit_gain(model.eval(), [shots.first], places, cfg.TRAINER.CAPT.MGDE.GAIN)
    model.refiner.expert.gain.fill_(gain)
    generator = torch.Generator().manual_seed(hash_seed(seed, 1))
    start_sample_expert(model)
    start_semantic_experts(model, cfg.TRAINER.CAPT.MGDE.CENTROIDS, generator)

    optimizer = build_optimizer(model.refiner, cfg.OPTIM)
    schedule = build_lr_scheduler(optimizer, cfg.OPTIM)
    model.train()
    for epoch in range(cfg.OPTIM.MAX_EPOCH):
        torch.manual_seed(hash_seed(seed, 2, epoch))
        for group in groups(len(classes.names), episodes):
            part = shots.within(group)
            serve(model, part.classes, None if episodes == "subsets without bank" else bank)
            for batch in batches(part, cfg.DATALOADER.TRAIN_X.BATCH_SIZE):
                output = model(batch.z, batch.cls, batch.tokens, batch.label, batch.index)
                optimizer.zero_grad()
                output.losses["loss"].backward()
                optimizer.step()
        schedule.step()
    serve(model, classes, bank)
    return model.eval()


def serve(model: CAPTModel, classes: Classes, bank: ConfusionBank | None) -> None:
    """Bind the model to these classes."""
    model.set_classes(classes.names, classes.features(), bank)


def bank_of(base: BaseModel, systematic: torch.nn.Module, shots: Shots, shrinkage: float) -> ConfusionBank:
    """The bank of the shots' first views, near misses filed as well; its data-set indices are those of the rows."""
    rows = shots.first
    cls, tokens = tokens_of(rows)
    probs = base.logits(rows.z, systematic(rows.z)).softmax(dim=-1)
    seen = {"cls": cls, "tokens": tokens, "layout": patch_layout(tokens)}
    views = JudgedViews.of(probs, rows.label, rows.z, index=rows.index, **seen)
    paths = [str(index) for index in range(int(rows.index.max()) + 1)]
    return ConfusionBank.build(shots.classes.names, paths, [views], near_misses=0.0, shrinkage=shrinkage)


def groups(num_classes: int, episodes: str) -> list[Tensor]:
    """Classes (ascending) that a batch is told apart among, in the order of an epoch."""
    if episodes == "no":
        return [torch.arange(num_classes)]
    order = torch.randperm(num_classes)
    return [half.sort().values for half in (order[: num_classes // 2], order[num_classes // 2 :])]


def batches(shots: Shots, size: int) -> Iterator[ViewBatch]:
    """Each image once, in one of its views; a last, smaller batch is left out where there is another."""
    num_images = len(shots.rows.label) // shots.num_views
    order = torch.randperm(num_images)
    view = torch.randint(shots.num_views, (num_images,))
    for place in order[: max(size, num_images - num_images % size)].split(size):
        yield rows_of(shots.rows, place * shots.num_views + view[place])


# ----------------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def predictions(model: CAPTModel, rows: ViewBatch, betas: list[float]) -> Tensor:
    """Classes ``(S, n)`` that the model answers with, its residual scaled to each of S betas."""
    expert, found = model.refiner.expert, []
    for part in torch.arange(len(rows.label)).split(500):
        batch = rows_of(rows, part)
        output, shifted = model(batch.z, batch.cls, batch.tokens), model.refiner.systematic(batch.z)
        _, correction = expert.correct(shifted, output.samples)
        r = output.refinement.residual / expert.beta
        moved = [move(shifted, beta * r + expert.gain * correction) for beta in betas]
        found.append(torch.stack([model.base.logits(batch.z, z).argmax(dim=1) for z in moved]))
    return torch.cat(found, dim=1)


def held_out(
    base: BaseModel, cfg: CfgNode, shots: Shots, variant: Variant, seed: int, args: argparse.Namespace
) -> Tensor:
    """Gain ``(S, C)`` of each beta on each class while it was held out."""
    names = shots.classes.names
    halves = halvings(names, torch.Generator().manual_seed(hash_seed(seed, 3)))[: 2 * args.halvings]
    penalty = penalty_of(base, shots, seed)
    label = shots.first.label

    def fit_and_compare(classes: Half, rows: Half) -> Tensor:
        model = trained(base, cfg, shots.within(classes[0]), penalty, seed, variant.episodes)
        other = shots.within(classes[1])
        serve(model, other.classes, model.bank)
        hits = (predictions(model, other.first, [0.0, *args.betas]) == other.first.label).float()
        return hits[1:] - hits[:1]

    return held_out_gains(label, len(names), halves, fit_and_compare)


def penalty_of(base: BaseModel, shots: Shots, seed: int) -> float | None:
    """Of the shift, as a run chooses it."""
    rows, classes, scale = shots.rows, shots.classes, float(base.logit_scale)
    generator = torch.Generator().manual_seed(hash_seed(seed, 3))
    is_plain = rows.view == 0
    return choose_penalty(rows.z, rows.label, is_plain, classes.texts, classes.names, scale, generator).strength


def known(
    base: BaseModel, cfg: CfgNode, shots: Shots, unused: ViewBatch, seed: int, args: argparse.Namespace
) -> dict[tuple[str, object], Figures]:
    """Figures on other images of the classes that everything was fitted to, by beta; and of the shift alone."""
    model = trained(base, cfg, shots, penalty_of(base, shots, seed), seed, "no")
    num_classes = len(shots.classes.names)
    before = base.logits(unused.z).argmax(dim=1)
    shifted = base.logits(unused.z, model.refiner.systematic(unused.z)).argmax(dim=1)
    found: dict[tuple[str, object], Tensor] = {("base model", ""): before, ("shift", ""): shifted}
    assert model.sample_miner is not None, "TRAINER.CAPT.SAM.ON"
    assert model.bank is not None, "it was trained with one"
    with model.sample_miner.settled(model.bank, base.project):
        after = predictions(model, unused, [0.0, *args.betas])
    found |= {("shift, corrections, experts", beta): row for beta, row in zip([0.0, *args.betas], after, strict=True)}
    return {key: figures(unused.label, before, row, num_classes) for key, row in found.items()}


# ------------------------------------------------------------------------------------------------------------- running


def run_config(args: argparse.Namespace, side: int) -> CfgNode:
    """CAPT's yaml, for so many epochs."""
    cfg = run_cfg(args, side, "base")
    cfg.OPTIM.MAX_EPOCH = args.epochs
    return cfg


def varied(cfg: CfgNode, variant: Variant, has_gate: bool) -> CfgNode:
    """The configuration of a variant."""
    cfg = cfg.clone()
    node = cfg.TRAINER.CAPT
    node.MGDE.HIDDEN_RATIO, node.MGDE.EVIDENCE_GATE = variant.hidden_ratio, has_gate
    node.MGDE.BETA = TRAINED_BETA
    node.LOSS.KEEP, node.LOSS.CONFUSE = variant.keep, variant.confuse
    return cfg


def look_up_texts(base: BaseModel, classes: Classes) -> None:
    """Texts of these classes are encoded once, not with every episode."""
    place = {name: index for index, name in enumerate(classes.names)}
    base.encode_classes = lambda classnames: classes.texts[[place[name] for name in classnames]]  # type: ignore[method-assign]


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    args = arguments(argv)
    prompted, base = zero_shot(args)
    cfg = run_config(args, prompted.input_size)
    gains: dict[Variant, list[Tensor]] = {}
    on_known: Found = {}
    for seed in args.seeds:
        source = dataset_of(cfg, args.shots, seed)
        classes = Classes.of(base, source.classnames, args.dataset)
        shots = Shots(classes, features(base, cfg, seed, source.train_x, args.views), args.views)
        drawn = {item.impath for item in source.train_x}
        others = [item for item in dataset_of(cfg, -1, seed).train_x if item.impath not in drawn]
        unused = features(base, cfg, seed, others)
        plain_encoding = base.encode_classes
        look_up_texts(base, classes)
        for variant in variants(args.keeps):
            gains.setdefault(variant, []).append(
                held_out(base, varied(cfg, variant, has_gate=False), shots, variant, seed, args)
            )
            if variant.episodes == "no":
                row = (variant.keep, variant.hidden_ratio, variant.confuse)
                for key, value in known(base, varied(cfg, variant, has_gate=True), shots, unused, seed, args).items():
                    on_known.setdefault((*row, *key), []).append(value)
        base.encode_classes = plain_encoding  # type: ignore[method-assign]
    print(f"{run_heading(args)}; {args.epochs} epochs, {args.halvings} halvings both ways\n")
    print(held_out_table(gains, args.betas))
    print()
    header = [
        "KEEP",
        "hidden / D",
        "lambda",
        "what",
        "beta",
        "accuracy",
        "mean per class",
        "resolved",
        "introduced",
        "net",
    ]
    formats = ("g", "g", "g", "", "g", *[".2f"] * 5)
    print(tabulate(mean_rows(on_known), header, floatfmt=formats, tablefmt="github"))
    return 0


def held_out_table(gains: dict[Variant, list[Tensor]], betas: list[float]) -> str:
    """One line a variant: gain and error at every beta, means over the seeds, and what each seed would choose."""
    rows = []
    for variant, of_seeds in gains.items():
        means = np.mean([g.mean(dim=1).numpy() for g in of_seeds], axis=0)
        errors = np.mean([(g.std(dim=1) / g.shape[1] ** 0.5).numpy() for g in of_seeds], axis=0)
        cells = [f"{mean:+.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True)]
        choices = [HeldOutChoice.of(betas, g).strength for g in of_seeds]
        chosen = ", ".join("0" if beta is None else f"{beta:g}" for beta in choices)
        rows.append(
            [f"{variant.keep:g}", variant.hidden_ratio, f"{variant.confuse:g}", variant.episodes, *cells, chosen]
        )
    header = ["KEEP", "hidden / D", "lambda", "episodes", *(f"beta {beta:g}" for beta in betas), "chosen, by seed"]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    sys.exit(main())
