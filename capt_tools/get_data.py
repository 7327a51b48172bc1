"""Fetches data sets into CoOp's folders, by torchvision's own downloaders, and checks them by the published counts.

    capt get-data DescribableTextures EuroSAT --root DATA
    capt get-data all --root DATA

A set that is complete is not fetched again. A run that was killed goes on with the archives that had arrived whole.
CoOp's split files come from elsewhere; where one is missing, its place and docs/DATASETS.md are named. The exit code
is 1 where a set could not be fetched or is incomplete.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .check_data import Report, check
from .fetching.sources import SOURCES, Source
from .fetching.staging import FetchError, fetch
from .tool import exit_code, parser_of

ALL = "all"


def problems(report: Report, source: Source, root: Path) -> list[str]:
    """What is wrong with a data set's images; nothing about the split file, which no downloader brings."""
    if report.num_classes is not None:
        return [note for note in report.notes if note != report.split_note]
    if report.is_absent or source.num_images is None:
        return report.notes
    found = [path for name in source.places.values() for path in (root / source.folder / name).rglob("*.jpg")]
    if len(found) == source.num_images:
        return []
    return [f"{len(found):,} images, published: {source.num_images:,}"]


def get(name: str, root: Path) -> bool:
    """Fetch one data set unless it is there, and say how it stands; False where it is not whole."""
    source = SOURCES[name]
    state = "complete, nothing to fetch"
    if problems(check(name, str(root)), source, root):
        print(f"{name}: fetching into {root / source.folder}", flush=True)
        try:
            fetch(source, root)
        except FetchError as error:
            print(f"{name}: not fetched, {error}; docs/DATASETS.md, section {name}, names its sources")
            return False
        state = "complete"
    report = check(name, str(root))
    found = problems(report, source, root)
    print(f"{name}: incomplete, {'; '.join(found)}" if found else f"{name}: {state}{_counts(report)}")
    for path in missing_by_hand(name, report, root):
        print(f"{name}: still needed is {path}; docs/DATASETS.md, Split files, says where it is")
    return not found


def missing_by_hand(name: str, report: Report, root: Path) -> list[Path]:
    """Files that make the published splits and that no downloader brings."""
    folder = root / SOURCES[name].folder
    split = Path(report.split_path) if report.split_path else None
    if split is None or split.exists():
        return []
    return [split, *(folder / other for other in SOURCES[name].by_hand if not (folder / other).exists())]


def _counts(report: Report) -> str:
    return "" if report.found is None else f", {report.found:,} images of {report.num_classes} classes"


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument(
        "name", nargs="+", choices=[*SOURCES, ALL], metavar="NAME", help=f"{', '.join(SOURCES)}, or all"
    )
    parser.add_argument("--root", type=Path, required=True, help="the data root, as for train.py")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch; return 0, 1 where a set is not whole, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    root = args.root.expanduser().absolute()
    names = list(SOURCES) if ALL in args.name else list(dict.fromkeys(args.name))
    return exit_code(lambda: max([int(not get(name, root)) for name in names]))
