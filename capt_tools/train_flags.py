"""The command line of train.py, which is CoOp's: its help, and what is mistyped, is answered without importing torch.

    capt train --root DATA --seed 1 --trainer CAPT --dataset-config-file configs/datasets/caltech101.yaml \\
        --config-file configs/trainers/CAPT/vit_b16_ep20.yaml --output-dir output/try DATASET.NUM_SHOTS 16
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

__all__ = ["build_parser", "main"]

EXAMPLE = r"""examples:
    %(prog)s --root DATA --seed 1 --trainer CAPT --output-dir output/try \
        --dataset-config-file configs/datasets/caltech101.yaml \
        --config-file configs/trainers/CAPT/vit_b16_ep20.yaml DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base"""


def build_parser() -> argparse.ArgumentParser:
    """CoOp's flags. An empty string means "not given"; the seed may be 0, so its default is None."""
    parser = argparse.ArgumentParser(
        description="Train or test a prompt learner (CoOp's flags).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=str, default="", help="folder that holds the data set folders")
    parser.add_argument("--output-dir", type=str, default="", help="where log, checkpoints and results.json go")
    parser.add_argument("--resume", type=str, default="", help="folder of a run to go on from")
    parser.add_argument("--seed", type=int, default=None, help="0 or more fixes the seed; not given: SEED of the yaml")
    parser.add_argument("--source-domains", type=str, nargs="+", help="source domains (Dassl's DA and DG data sets)")
    parser.add_argument("--target-domains", type=str, nargs="+", help="target domains (Dassl's DA and DG data sets)")
    parser.add_argument("--transforms", type=str, nargs="+", help="replaces INPUT.TRANSFORMS")
    parser.add_argument("--config-file", type=str, default="", help="configs/trainers/<Method>/<name>.yaml")
    parser.add_argument("--dataset-config-file", type=str, default="", help="configs/datasets/<name>.yaml")
    parser.add_argument("--trainer", type=str, default="", help="name of the trainer, e.g. CoOp or CAPT")
    parser.add_argument("--backbone", type=str, default="", help="CLIP model name, or path of a CLIP checkpoint")
    parser.add_argument("--head", type=str, default="", help="name of the head (unused by prompt learners)")
    parser.add_argument("--eval-only", action="store_true", help="test a trained model")
    parser.add_argument("--model-dir", type=str, default="", help="output folder of the run to test")
    parser.add_argument("--load-epoch", type=int, default=None, help="epoch of the checkpoint to test")
    parser.add_argument("--no-train", action="store_true", help="build everything, train nothing")
    together = "processes that do the run together, one on each GPU (1)"
    parser.add_argument("--nproc", type=int, default=argparse.SUPPRESS, help=together)  # not in the banner by itself
    parser.add_argument("opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE pairs, after all flags")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line `argv`, then have train.py run it; returns its exit code."""
    build_parser().parse_args(argv)
    code: int = importlib.import_module("train").main(argv)
    return code
