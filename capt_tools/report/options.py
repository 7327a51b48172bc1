"""What the tools about finished runs share: their arguments, and the trained model that these name."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..house import find

if TYPE_CHECKING:
    from capt import Predictor

__all__ = ["add_image_root", "add_model_places", "add_run", "load_predictor", "model_places"]


def add_run(parser: argparse.ArgumentParser) -> None:
    """``--run``, one trained CAPT."""
    parser.add_argument("--run", type=Path, required=True, help="output folder of a CAPT run")


def add_image_root(parser: argparse.ArgumentParser) -> None:
    """``--images``, for ``evidence.images_root``."""
    parser.add_argument("--images", type=Path, help="folder that image paths start from (default: the run's data root)")


def add_model_places(parser: argparse.ArgumentParser) -> None:
    """``--backbone``, ``--base-dir`` and ``--base-module``, for what a run stands on and does not bring along."""
    parser.add_argument("--backbone", help="CLIP's name or file, where the run's has moved")
    parser.add_argument("--base-dir", type=Path, help="run folder of the base learner, where it has moved")
    parser.add_argument("--base-module", help="module or .py file that registers the base learner; its code is run")


def model_places(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``capt.load`` that :func:`add_model_places` asked for."""
    backbone = args.backbone and find(args.backbone)
    return {"backbone": backbone, "base_dir": args.base_dir, "base_module": args.base_module}


def load_predictor(folder: Path, class_names: Sequence[str] | None = None, **load: Any) -> Predictor:
    """``capt.load``, serving `class_names`; what it prints goes to stderr, since stdout is for the tool's answers.

    Raises:
        OSError: a file of the run is missing.
        ValueError: the run is no CAPT's, or of another version.
    """
    import capt

    with contextlib.redirect_stdout(sys.stderr):
        predictor = capt.load(folder, **load)
        predictor.serve(class_names)
    return predictor
