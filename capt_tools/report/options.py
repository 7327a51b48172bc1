"""Arguments that the scripts about finished runs share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_image_root", "add_model_places", "model_places"]


def add_image_root(parser: argparse.ArgumentParser) -> None:
    """``--images``, for ``evidence.images_root``."""
    parser.add_argument("--images", type=Path, help="folder that image paths start from (default: the run's data root)")


def add_model_places(parser: argparse.ArgumentParser) -> None:
    """``--backbone`` and ``--base-dir``, for runs whose CLIP or base learner lies elsewhere now."""
    parser.add_argument("--backbone", help="CLIP's name or file, where the run's has moved")
    parser.add_argument("--base-dir", type=Path, help="run folder of the base learner, where it has moved")


def model_places(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``capt.load`` that :func:`add_model_places` asked for."""
    return {"backbone": args.backbone, "base_dir": args.base_dir}
