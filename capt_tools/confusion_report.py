"""Who is confused with whom, before and after, and why: one HTML file that opens from disk without a network.

    capt report output/caltech101/CAPT/vit_b16_ep20_on_ZeroshotCLIP_16shots/seed1
    capt report RUN RUN RUN --output report

Reads ``results.json`` and ``predictions.npz`` of finished runs of any trainer; for runs of CAPT it also asks the model
which training images and sentences it used. Beside the page go CSV files, and ``labels.npy``, ``pred_probs.npy`` and
``paths.txt`` for cleanlab and FiftyOne.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from capt.run.files import write_atomically

from .report.evidence import Evidence, gather_evidence, images_root
from .report.exports import write_exports
from .report.figures import pair_rows
from .report.options import add_image_root, add_model_places, model_places
from .report.page import MAX_PAIRS_TOLD, choose_images, render, run_content
from .report.pictures import Album
from .report.runs import read_run, run_names
from .tool import exit_code, parser_of


def report(args: argparse.Namespace) -> None:
    """Write the page and the files beside it."""
    runs = [read_run(folder) for folder in args.run]
    names = run_names(runs)
    out = args.output or args.run[0] / "report"
    # Half of the budget is for the text around the pictures; what it leaves over is not needed.
    budget = int(args.max_mb * 1e6 * 0.8)
    album = Album(budget, args.thumbnail)
    contents = []
    for run, name in zip(runs, names, strict=True):
        root = images_root(run, args.images)
        pairs = pair_rows(run.labels, run.base_predictions, run.predictions, run.num_classes)
        chosen = choose_images(run, pairs)
        told = [(row.a, row.b) for row in pairs[:MAX_PAIRS_TOLD]]
        if args.no_model:
            evidence = Evidence("The report was made with --no-model.", {}, {}, {})
        else:
            evidence = gather_evidence(run, root, chosen, told, **model_places(args))
        album.shown = run.is_shown
        contents.append(run_content(run, name, root, evidence, chosen, album))
        write_exports(run, out if len(runs) == 1 else out / _file_name(name))
    data_sets = dict.fromkeys(run.record["dataset"] for run in runs)
    page = render(contents, album, f"Confusions: {', '.join(data_sets)}").encode()
    if len(page) > args.max_mb * 1e6:
        print(f"the page has {len(page) / 1e6:.1f} MB, more than --max-mb; lower --thumbnail", file=sys.stderr)
    path = out / "report.html"
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(page))
    if album.missing:
        example = sorted(album.missing)[0]
        print(f"{len(album.missing):,} images cannot be read, e.g. {example}; say by --images where they lie")
    if album.refused:
        print(f"{len(album.refused):,} images are listed without a picture, to stay below {args.max_mb:g} MB")
    print(f"{path} ({len(page) / 1e6:.1f} MB, {len(album.uris):,} pictures)")


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="output folders of finished runs")
    parser.add_argument("--output", type=Path, help="folder to write to (default: report/ in the first run)")
    add_image_root(parser)
    parser.add_argument("--max-mb", type=float, default=15.0, help="size of the page (default: 15)")
    parser.add_argument("--thumbnail", type=int, default=80, help="longer side of a picture in pixels (default: 80)")
    parser.add_argument("--no-model", action="store_true", help="do not load the model; no representatives, no texts")
    add_model_places(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; return 0, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: report(args))
