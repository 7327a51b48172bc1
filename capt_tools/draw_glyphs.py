"""Writes the pretraining stream of the demo data set as an image tar (input of pretrain_clip.py).

    python -m capt_tools.draw_glyphs glyphs_pretraining.tar

The stream is drawn by the project (datasets/glyph_drawing.py), shares no picture with Glyphs' train, val and test
splits, and has captions as the web writes them: of each look-alike pair (a, b) 75 % of b's pictures carry a's name.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import compat  # noqa: F401

from datasets.glyph_files import CLASS_NAMES, write_pretraining_tar

from .tool import parser_of


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, show_defaults=True)
    parser.add_argument("tar", help="file to write")
    parser.add_argument("--per-class", type=int, default=300, help="pictures of each class")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    started = time.perf_counter()
    misnamed = write_pretraining_tar(args.tar, args.per_class)
    print(
        f"{args.tar}: {len(CLASS_NAMES) * args.per_class} pictures of {len(CLASS_NAMES)} classes, "
        f"{misnamed} under a look-alike's name, {time.perf_counter() - started:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
