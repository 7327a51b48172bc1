"""Checks which data sets are complete, before a training run finds out.

    capt check-data --root DATA
    capt check-data --root DATA --dataset Caltech101 OxfordPets --verify

Compares the images that each split lists with the files on disk and with the published counts. Nothing is written.
The exit code is 1 when a data set is incomplete; a folder that is absent counts only where --dataset names it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import compat  # noqa: F401

from dassl.data.datasets import DATASET_REGISTRY
from tabulate import tabulate
from tqdm import tqdm

import datasets  # noqa: F401
from capt.run.pictures import ImageError, read_image
from datasets.data_folder import DataFolder
from datasets.files import DataNotFoundError
from datasets.splits import SPLITS

from .tool import parser_of

# Classes, and images of train, val and test, as the papers use them. None: the set has no such split.
PUBLISHED: dict[str, tuple[int, int | None, int | None, int]] = {
    "ImageNet": (1000, 1_281_167, 50_000, 50_000),
    "Caltech101": (100, 4_128, 1_649, 2_465),
    "OxfordPets": (37, 2_944, 736, 3_669),
    "StanfordCars": (196, 6_509, 1_635, 8_041),
    "OxfordFlowers": (102, 4_093, 1_633, 2_463),
    "Food101": (101, 50_500, 20_200, 30_300),
    "FGVCAircraft": (100, 3_334, 3_333, 3_333),
    "SUN397": (397, 15_880, 3_970, 19_850),
    "DescribableTextures": (47, 2_820, 1_128, 1_692),
    "EuroSAT": (10, 13_500, 5_400, 8_100),
    "UCF101": (101, 7_639, 1_898, 3_783),
    "ImageNetV2": (1000, None, None, 10_000),
    "ImageNetSketch": (1000, None, None, 50_889),
    "ImageNetA": (200, None, None, 7_500),
    "ImageNetR": (200, None, None, 30_000),
    "FashionMNIST": (10, 5_000, 1_000, 10_000),  # the split of prepare_fashion_mnist.py
}


@dataclass
class Report:
    """What was found of one data set; ``notes`` hold one problem each, ``split_note`` is that of the split file."""

    name: str
    is_absent: bool = False
    num_classes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    listed: int | None = None
    found: int | None = None
    notes: list[str] = field(default_factory=list)
    split_path: str = ""
    split_note: str = ""

    @property
    def state(self) -> str:
        if self.is_absent:
            return "absent"
        return "incomplete" if self.notes else "complete"

    def row(self) -> list[str]:
        """One line of the table."""
        numbers = [self.num_classes, *(self.counts.get(part) for part in SPLITS), self.listed, self.found]
        return [self.name, self.state, *("-" if number is None else f"{number:,}" for number in numbers)]


def check(name: str, root: str, verify: bool = False) -> Report:
    """Compare one data set's lists with its files and with the published counts.

    Args:
        name: registered name of one of ``PUBLISHED``.
        root: the data root.
        verify: decode every image as well.
    """
    report = Report(name)
    cls: Any = DATASET_REGISTRY.get(name)  # one of ours, a DataFolder that lists its splits
    dataset = cls.__new__(cls)  # __init__ would sample and write caches
    report.is_absent = not os.path.isdir(os.path.join(os.path.expanduser(root), cls.dataset_dir))
    try:
        dataset.locate(root)
        report.split_path = getattr(dataset, "split_path", "")  # the variants of ImageNet have none
        with contextlib.redirect_stdout(io.StringIO()):
            splits = dataset.list_splits()
    except (DataNotFoundError, ValueError, KeyError) as error:
        report.notes.append(str(error))
        return report

    if dataset.split_file and not os.path.exists(dataset.split_path):
        report.split_note = f"no {dataset.split_path}: train and val are not the published ones; {dataset.where()}"
        report.notes.append(report.split_note)
    report.num_classes = len({item.label for item in splits["test"]})
    report.counts = {part: len(items) for part, items in splits.items()}
    _compare_counts(report)
    _compare_files(report, {item.impath for items in splits.values() for item in items}, dataset, verify)
    return report


def _compare_counts(report: Report) -> None:
    num_classes, *counts = PUBLISHED[report.name]
    if report.num_classes != num_classes:
        report.notes.append(f"{report.num_classes:,} classes, published: {num_classes:,}")
    for part, published in zip(SPLITS, counts, strict=True):
        if published is not None and report.counts[part] != published:
            report.notes.append(f"{report.counts[part]:,} {part} images, published: {published:,}")


def _compare_files(report: Report, paths: set[str], dataset: DataFolder, verify: bool) -> None:
    found = sorted(path for path in paths if os.path.isfile(path))
    report.listed, report.found = len(paths), len(found)
    missing = sorted(paths - set(found))
    if missing:
        examples = ", ".join(os.path.relpath(path, dataset.dataset_dir) for path in missing[:3])
        report.notes.append(f"{len(missing):,} listed images are missing, e.g. {examples}; {dataset.where()}")
    if verify:
        report.notes += [f"damaged: {path} ({problem})" for path, problem in damaged_images(found, report.name)]


def damaged_images(paths: Iterable[str], name: str = "") -> list[tuple[str, str]]:
    """Decode images; return ``(path, problem)`` of those that fail."""

    def problem(path: str) -> str | None:
        try:
            read_image(path)
        except ImageError as error:
            return error.reason
        return None

    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        problems = tqdm(pool.map(problem, paths), total=len(paths), desc=f"decoding {name}", disable=None)
        return [(path, text) for path, text in zip(paths, problems, strict=True) if text]


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--root", required=True, help="the data root, as for train.py")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", choices=list(PUBLISHED), help="check only these")
    parser.add_argument("--verify", action="store_true", help="decode every image and name the damaged ones")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the problems; return 1 when something is incomplete."""
    args = build_parser().parse_args(argv)
    reports = [check(name, args.root, args.verify) for name in args.dataset or PUBLISHED]
    headers = ["data set", "state", "classes", *SPLITS, "listed", "found"]
    print(tabulate([report.row() for report in reports], headers, colalign=("left", "left", *["right"] * 6)))

    counted = [report for report in reports if args.dataset or not report.is_absent]
    for report in counted:
        for note in report.notes:
            print(f"{report.name}: {note}")
    if not counted:
        print(f"no data set under {os.path.abspath(os.path.expanduser(args.root))}; see docs/DATASETS.md")
    return int(not counted or any(report.notes for report in counted))
