"""Predicts images with a trained CAPT, and says why.

    capt predict --run output/quick/photos/folder/CAPT/vit_b16_ep20_on_ZeroshotCLIP_16shots/seed1 a.jpg
    capt predict --run RUN photos/ --format jsonl
    capt predict --run RUN kitchen.jpg --explain
    capt predict --run RUN kitchen.jpg --classes teapot "coffee mug" vase

Folders are searched for images at any depth. An image that cannot be read is named on stderr, the others are answered,
and the exit code is 1. Nothing of Dassl is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .report.options import add_model_places, add_run, load_predictor, model_places
from .tool import exit_code, parser_of

if TYPE_CHECKING:
    from capt import Predictor
    from capt.use.explanation import Explanation

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def find_images(places: Sequence[Path]) -> list[Path]:
    """The files that were named, and the images inside the folders that were named.

    Raises:
        FileNotFoundError: a place is not there, or a folder holds no image.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise FileNotFoundError(f"no image in {place}")
            found += inside
        elif place.exists():
            found.append(place)
        else:
            raise FileNotFoundError(f"no file {place}")
    return found


def explanations(
    args: argparse.Namespace, predictor: Predictor, paths: Sequence[Path]
) -> Iterator[tuple[Path, Explanation]]:
    """Path and explanation of each readable image; the others are named on stderr."""
    from capt import ImageError
    from capt.use.explanation import explain
    from capt.use.predictor import open_image

    for start in range(0, len(paths), args.batch_size):
        readable, images = [], []
        for path in paths[start : start + args.batch_size]:
            try:
                images.append(open_image(path))
                readable.append(path)
            except ImageError as error:
                print(f"left out: {error}", file=sys.stderr)
        if images:
            found = explain(predictor, images, args.classes, args.top_k, args.batch_size)
            yield from zip(readable, found, strict=True)


def as_json(path: Path, found: Explanation, is_explained: bool) -> str:
    """One line of JSON about an image."""
    prediction = found.prediction
    tops = {
        "top": (prediction.class_names, prediction.confidences),
        "base_top": (prediction.base_class_names, prediction.base_confidences),
    }
    line: dict[str, Any] = {"image": str(path)}
    for key, columns in tops.items():
        line[key] = [{"class": name, "confidence": round(c, 6)} for name, c in zip(*columns, strict=True)]
    line["changed"] = found.is_changed
    if is_explained:
        line["pairs"] = [vars(pair) for pair in found.pairs]
        line["representatives"] = [vars(sample) for sample in found.representatives]
        line["evidence"], line["angle_degrees"] = round(found.evidence, 6), round(found.angle, 4)
    return json.dumps(line, ensure_ascii=False)


def as_row(path: Path, found: Explanation) -> list[str]:
    """The image's line in the table."""
    prediction = found.prediction
    tops = [f"{name} {100 * c:.1f}%" for name, c in zip(prediction.class_names, prediction.confidences, strict=True)]
    base = f"{prediction.base_class_names[0]} {100 * prediction.base_confidences[0]:.1f}%"
    return [str(path), tops[0], ", ".join(tops[1:]), base + (" *" if found.is_changed else "")]


def as_text(path: Path, found: Explanation) -> str:
    """The explanation of an image, for reading."""
    from tabulate import tabulate

    prediction = found.prediction
    answers = tabulate(
        zip(
            prediction.class_names,
            [f"{100 * c:.1f}%" for c in prediction.confidences],
            prediction.base_class_names,
            [f"{100 * c:.1f}%" for c in prediction.base_confidences],
            strict=True,
        ),
        headers=["CAPT", "", "base model", ""],
    )
    first, base = prediction.class_name, prediction.base_class_names[0]
    change = f"{base} became {first}" if found.is_changed else f"both say {first}"
    lines = [f"== {path}", answers, "", f"{change}; the image feature was turned by {found.angle:.2f} degrees"]
    if found.representatives:
        lines[-1] += f", evidence of the bank {found.evidence:.2f}"
    for pair in found.pairs:
        lines += ["", f"{pair.target} / {pair.partner}  score {pair.score:.4f}"]
        lines += [f"  tells apart ({pair.sources[0]}): {text}" for text in pair.difference]
        lines += [f"  shared ({pair.sources[1]}): {text}" for text in pair.commonality]
    if found.representatives:
        rows = [
            [f"{s.similarity:.3f}", s.path, s.label, f"taken for {s.rival}" if s.is_error else f"torn with {s.rival}"]
            for s in found.representatives
        ]
        lines += ["", tabulate(rows, headers=["cosine", "training image", "class", "the base model"])]
    else:
        lines += ["", "No training image of these pairs: the bank does not know them, or is not consulted"]
    return "\n".join(lines) + "\n"


def predict(args: argparse.Namespace) -> int:
    """Print what `args` asks for; 1 if an image could not be read."""
    paths = find_images(args.images)
    predictor = load_predictor(args.run, device=args.device, epoch=args.epoch, **model_places(args))
    num_answered, rows = 0, []
    for path, found in explanations(args, predictor, paths):
        num_answered += 1
        if args.format == "jsonl":
            print(as_json(path, found, args.explain), flush=True)
        elif args.explain:
            print(as_text(path, found), flush=True)
        else:
            rows.append(as_row(path, found))
    if rows:
        from tabulate import tabulate

        print(tabulate(rows, headers=["image", "class", "next", "base model (* CAPT differs)"]))
    return int(num_answered < len(paths))


def build_parser(doc: str = __doc__) -> argparse.ArgumentParser:
    """The parser; ``explain`` has words and examples of its own for it."""
    parser = parser_of(doc)
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    add_run(parser)
    parser.add_argument("--top-k", type=int, default=5, help="classes an image (default: 5)")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="choose from these (default: the run's own)")
    parser.add_argument("--explain", action="store_true", help="add pairs, sentences, training images, the change")
    parser.add_argument("--format", choices=("table", "jsonl"), default="table", help="default: table")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument("--batch-size", type=int, default=100, help="images in one pass (default: 100)")
    parser.add_argument("--epoch", type=int, help="epoch of the checkpoint (default: what the run deployed)")
    add_model_places(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict; return 0, 1 where an image could not be read, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: predict(args))
