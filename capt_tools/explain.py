"""Says why a trained CAPT answers as it does, image by image.

    capt explain --run RUN kitchen.jpg
    capt explain --run RUN photos/ --format jsonl --top-k 3

For each image: the classes before and after CAPT, the pairs of classes it was torn between with what tells them apart
and what they share, the training images that were consulted, and how far the image's feature was turned. These are
the arguments of ``capt predict``, with ``--explain`` given.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .predict import build_parser as predict_parser
from .predict import predict
from .tool import exit_code

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    parser = predict_parser(__doc__)
    parser.set_defaults(explain=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Explain; return 0, 1 where an image could not be read, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: predict(args))
