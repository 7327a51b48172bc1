"""Which form of a systematic part transfers to classes that it was not fitted to.

By classes of the run's own base half that were held out (trainers/capt/method/held_out_classes.py, 20 halvings, the
one-standard-error rule): the shift v against the base model; a class bias that likeness of texts carries over, and the
vote of the difference prompts on the mined pairs, in place of v and beside it; and a linear map beside it. With --runs
also who should choose the shift's penalty where a base learner was tuned on the same shots: its own features or
zero-shot CLIP's. Test images choose nothing; what the chosen strength does to them is printed beside.

    python benchmarks/what_transfers.py --root DATA --backbone CLIP --dataset Caltech101 --seeds 1 2 3 \\
        --runs CoOp=output/.../CoOp/vit_b16_ep50_ctxv1 MaPLe=output/.../MaPLe/vit_b16_c2_ep5_batch4_2ctx

Each folder of --runs holds seed1, seed2 ...
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import numpy as np
import torch
from run_features import HALVES, Classes, features, run_cfg, run_heading, run_parser
from tabulate import tabulate
from torch import Tensor
from transferring_forms import Form, KernelBias, LinearMap, Shift, Sight, Unchanged, Vote
from unused_images import dataset_of, zero_shot

from trainers.capt.backbone.prompted_clip import PromptedCLIP
from trainers.capt.bases.learners import BaseModel, BaseSpec, build_base
from trainers.capt.bases.templates import template_of
from trainers.capt.method.held_out_classes import Half, HeldOutChoice, halvings, held_out_gains
from trainers.capt.run.feature_cache import hash_seed

VIEWS = 4  # that v is fitted to, as in a run; one chooses
WIDTHS = (2.0, 5.0, 15.0)
Result = tuple[HeldOutChoice, list[float]]  # what is chosen, and what it does to the test accuracies of both halves
Results = dict[tuple[str, str], list[Result]]  # what a line begins with, to each seed's


@dataclass(frozen=True)
class Run:
    """One seed as a base model sees it.

    Attributes:
        shots: one view of each shot.
        views: all views.
        tests: the test images of each half.
    """

    shots: Sight
    views: Sight
    tests: dict[str, Sight]

    @classmethod
    def of(cls, base: BaseModel, args: argparse.Namespace, side: int, seed: int, tests: dict[str, Sight]) -> Run:
        """Encode the shots, and the test images where they are not there yet."""
        cfg, scale = run_cfg(args, side, "base"), float(base.logit_scale)
        source = dataset_of(cfg, args.shots, seed)
        rows = features(base, cfg, seed, source.train_x, VIEWS)
        for half in HALVES:
            if half not in tests:
                classes, images = Classes.test(base, args, side, half)
                tests[half] = Sight(images.z, images.label, classes, scale)
        classes, first = tests["base"].classes, rows.view == 0
        views = Sight(rows.z, rows.label, classes, scale)
        return cls(Sight(rows.z[first], rows.label[first], classes, scale), views, tests)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = run_parser(__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="*", default=[], metavar="LEARNER=FOLDER", help="base learners on these shots")
    return parser.parse_args(argv)


def chosen(form: Form, than: Form, shots: Sight, seed: int) -> HeldOutChoice:
    """What held-out classes say of the form's strengths, compared with what ``than`` gives."""
    halves = halvings(shots.classes.names, torch.Generator().manual_seed(hash_seed(seed, 3)))
    if not halves:
        return HeldOutChoice.of(form.strengths, None)

    def fit_and_compare(classes: Half, rows: Half) -> Tensor:
        fitted, held = (shots.within(*half) for half in zip(classes, rows, strict=True))
        before, after = than.fit(fitted)(held), form.fit(fitted)(held)
        return (after.argmax(dim=-1) == held.label).float() - (before.argmax(dim=-1) == held.label).float()

    return HeldOutChoice.of(
        form.strengths, held_out_gains(shots.label, len(shots.classes.names), halves, fit_and_compare)
    )


def tested(form: Form, run: Run) -> list[float]:
    """Accuracy on the test images of both halves of what was fitted to all views of the shots."""
    answer = form.fit(run.views)
    hits = ((answer(run.tests[half])[0].argmax(dim=1) == run.tests[half].label) for half in HALVES)
    return [100 * hit.float().mean().item() for hit in hits]


def votes(penalty: float | None) -> dict[str, Vote]:
    """Votes of the pair prompts, beside the shift with this penalty; None where there is none."""
    found = {}
    for is_described, which in ((True, "pairs of the file"), (False, "all pairs")):
        for is_centred, how in ((False, ""), (True, ", z less its mean")):
            found[f"vote, {which}{how}"] = Vote(penalty, is_described, is_centred)
    return found


def biases(penalty: float | None) -> dict[str, KernelBias]:
    """Biases that likeness of texts carries over, beside the shift with this penalty."""
    return {f"class bias by likeness of texts, g = {width:g}": KernelBias(width, penalty) for width in WIDTHS}


def forms_beside(penalty: float | None) -> dict[str, Form]:
    """What is tried beside the shift with this penalty; None where there is none."""
    return {"linear map A": LinearMap(penalty), **biases(penalty), **votes(penalty)}


def by_form(run: Run, seed: int) -> dict[tuple[str, str], Result]:
    """(form, what it is compared with) to the choice and the change of both test accuracies."""
    found = {}

    def judge(name: str, form: Form, than: Form, than_name: str) -> HeldOutChoice:
        choice = chosen(form, than, run.shots, seed)
        change = [0.0, 0.0]
        if choice.strength is not None:
            pairs = zip(tested(form.at(choice.strength), run), tested(than, run), strict=True)
            change = [after - before for after, before in pairs]
        found[name, than_name] = choice, change
        return choice

    penalty = judge("shift v", Shift(), Unchanged(), "base model").strength
    for name, form in {**biases(None), **votes(None)}.items():
        judge(name, form, Unchanged(), "base model")
    shift = Unchanged() if penalty is None else Shift((penalty,))
    for name, form in forms_beside(penalty).items():
        judge(name, form, shift, "v")
    return found


def by_judge(learner: Run, judge: Run, seed: int) -> dict[str, Result]:
    """Who chooses the penalty to the choice, and what v does to the base learner's test accuracies."""
    found = {}
    for name, run in (("its own features", learner), ("zero-shot CLIP", judge)):
        choice, change = chosen(Shift(), Unchanged(), run.shots, seed), [0.0, 0.0]
        if choice.strength is not None:
            pairs = zip(tested(Shift((choice.strength,)), learner), tested(Unchanged(), learner), strict=True)
            change = [after - before for after, before in pairs]
        found[name] = choice, change
    return found


def row(results: list[Result]) -> list[str]:
    """Means over the seeds, and each seed's strength."""
    choices, changes = zip(*results, strict=True)
    gain, error = (np.mean([getattr(c, name) for c in choices]) for name in ("gain", "error"))
    strengths = ", ".join("none" if c.strength is None else f"{c.strength:.3g}" for c in choices)
    return [f"{gain:+.2f} ± {error:.2f}", strengths, *(f"{x:+.2f}" for x in np.mean(changes, axis=0))]


def table(name: str, results: Results, than: str) -> str:
    """One line for each key."""
    header = [name, than, "held-out gain", "chosen, by seed", *(f"test {half}" for half in HALVES)]
    rows = [[*key, *row(values)] for key, values in results.items()]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    args = arguments(argv)
    prompted, base = zero_shot(args)
    side = prompted.input_size
    learners = dict(pair.split("=", 1) for pair in args.runs)
    forms: Results = {}
    judges: Results = {}
    tests: dict[str, Sight] = {}
    for seed in args.seeds:
        judge = Run.of(base, args, side, seed, tests)
        for key, result in by_form(judge, seed).items():
            forms.setdefault(key, []).append(result)
        for name, folder in learners.items():
            learner = tuned(prompted, name, f"{folder}/seed{seed}", args.dataset)
            for who, result in by_judge(Run.of(learner, args, side, seed, {}), judge, seed).items():
                judges.setdefault((name, who), []).append(result)
    print(f"{run_heading(args)}; gains in points, mean over seeds, ± one run's standard error over held-out classes\n")
    print(table("zero-shot CLIP with", forms, "compared with"))
    if judges:
        print()
        print(table("v on", judges, "penalty chosen by"))
    return 0


def tuned(prompted: PromptedCLIP, name: str, folder: str, dataset: str) -> BaseModel:
    """The base model that a base learner's run left behind."""
    return build_base(prompted, BaseSpec(name, folder, 0, template_of(dataset)))


if __name__ == "__main__":
    sys.exit(main())
