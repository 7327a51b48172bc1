"""How CAPT's gain on new classes follows the size of a bias that all classes share: a controlled experiment.

The demo's CLIP is pre-trained anew with 0, 1, 2 or 4 kinds of systematic confusion planted: of stripes, spots, bites
and handles, the first so many are left out of three captions in four ("a candle" under a striped one). Each kind occurs
in the base half and in the new half. Pictures, seed and recipe are the same for all; then zero-shot CLIP, the chosen
shift alone and CAPT are tested on the classes of both halves.

    python benchmarks/planted_confusions.py --root DATA --work FOLDER --seeds 1 2 3

The CLIPs stay in FOLDER, and a second call takes those that are there. Pictures and epochs are fewer than for
assets/glyphs_clip.pt, so that one CLIP takes minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import numpy as np
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from tabulate import tabulate

import train
from capt_tools import pretrain_clip
from datasets.glyph_files import write_pretraining_tar
from datasets.glyph_shapes import DETAILS, LOOK_ALIKES
from trainers.capt import CAPT
from trainers.capt.run.record import code_commit

ROOT = Path(__file__).resolve().parents[1]
# As assets/glyphs_clip.pt was made, but for the pictures and epochs.
RECIPE = {"vision-layers": 3, "text-layers": 3, "min-area": 0.85, "precision": "bf16", "attention": "math"}
HALVES = ("base", "new")
HEADER = [
    "kinds planted",
    "held-out gain",
    "|v|",
    *(f"plain for detailed, {half}" for half in HALVES),
    *(f"{method} {half}" for method in ("zero-shot", "shift", "CAPT") for half in HALVES),
    *(f"CAPT's gain, {half}" for half in HALVES),
]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", default="data", help="folder of the data sets; the demo's is drawn where it is missing"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for CLIPs and runs")
    parser.add_argument("--kinds", type=int, nargs="+", default=[0, 1, 2, 4], help=f"how many of {', '.join(DETAILS)}")
    parser.add_argument("--per-class", type=int, default=200, help="pictures of a class to pre-train on")
    parser.add_argument("--pretrain-epochs", type=int, default=16)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--opts", nargs="*", default=[], help="more KEY VALUE pairs for the runs")
    return parser.parse_args(argv)


def pretrained(args: argparse.Namespace, num_kinds: int) -> Path:
    """A CLIP whose captions left the first ``num_kinds`` details out; made where it is not there yet."""
    out: Path = args.work / f"kinds{num_kinds}_{args.per_class}x{args.pretrain_epochs}.pt"
    if not out.exists():
        misnamed = [name for detail in list(DETAILS)[:num_kinds] for name in DETAILS[detail]]
        tar = out.with_suffix(".tar")
        write_pretraining_tar(tar, args.per_class, misnamed)
        command = [
            str(out),
            "--images",
            str(tar),
            "--epochs",
            str(args.pretrain_epochs),
            *(f"--{flag}={value}" for flag, value in RECIPE.items()),
        ]
        if pretrain_clip.main(command):
            raise RuntimeError(f"{out} could not be pre-trained; see above")
        tar.unlink()
    return out


def tested(args: argparse.Namespace, clip: Path, seed: int) -> dict[str, float]:
    """One row of figures: CAPT trained on the base half and tested on both, and what its shift alone makes of them."""
    found: dict[str, float] = {}
    trained = args.work / clip.stem / f"seed{seed}"
    for half in HALVES:
        trainer, folder = build(args, clip, seed, half, trained)
        if half == "base":
            trainer.train()  # and tests
            found["held-out gain"] = trainer.choices["shift"]["held_out_gain"]
            found["|v|"] = float(trainer.model.refiner.systematic.shift.norm())
        else:
            trainer.load_model(str(trained))
            trainer.test()
        record = json.loads((folder / "results.json").read_text())
        found[f"zero-shot {half}"], found[f"CAPT {half}"] = record["confusion"]["base_accuracy"], record["accuracy"]
        found[f"CAPT's gain, {half}"] = record["accuracy"] - record["confusion"]["base_accuracy"]
        found[f"plain for detailed, {half}"] = common_bias(folder, record["classnames"])
        expert = trainer.model.refiner.expert
        expert.mixture, expert.use_corrections = None, False
        found[f"shift {half}"] = trainer.test()
    return found


def build(args: argparse.Namespace, clip: Path, seed: int, half: str, trained: Path) -> tuple[CAPT, Path]:
    """CAPT's trainer with the demo's configuration, and the folder that its record goes to."""
    folder = trained if half == "base" else trained / "new"
    words = ["--root", args.root, "--seed", str(seed), "--trainer", "CAPT", "--backbone", str(clip)]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/glyphs.yaml")]
    words += ["--config-file", str(ROOT / "configs/trainers/CAPT/demo.yaml"), "--output-dir", str(folder)]
    words += ["INPUT.SIZE", "(48, 48)", "DATASET.NUM_SHOTS", str(args.shots), "DATASET.SUBSAMPLE_CLASSES", half]
    cfg = train.setup_cfg(train.build_parser().parse_args([*words, *args.opts]))
    set_random_seed(seed)
    trainer = build_trainer(cfg)
    assert isinstance(trainer, CAPT)
    return trainer, folder


def common_bias(folder: Path, classnames: list[str]) -> float:
    """Percent of the look-alikes b that zero-shot CLIP takes for the plain a, less the percent of a taken for b."""
    arrays = np.load(folder / "predictions.npz")
    labels, predictions = arrays["labels"], arrays["base_predictions"]
    shares = []
    for a, b in LOOK_ALIKES:
        if a in classnames:
            plain, detailed = classnames.index(a), classnames.index(b)
            shares.append((predictions[labels == detailed] == plain).mean())
            shares.append(-(predictions[labels == plain] == detailed).mean())
    return 200 * float(np.mean(shares))


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    args = arguments(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for num_kinds in args.kinds:
        clip = pretrained(args, num_kinds)
        with (args.work / f"{clip.stem}.log").open("w") as log, redirect_stdout(log):
            found = [tested(args, clip, seed) for seed in args.seeds]
        values = [[run[name] for run in found] for name in HEADER[1:]]
        rows.append([num_kinds, *(f"{np.mean(v):.2f} ± {np.std(v):.2f}" for v in values)])
    print(
        f"Glyphs, {args.shots} shots, seeds {args.seeds}, mean ± standard deviation over them; CLIPs pre-trained on "
        f"{args.per_class} pictures a class, {args.pretrain_epochs} epochs; commit {code_commit()}"
    )
    print(tabulate(rows, HEADER, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
