"""Turns the four Fashion-MNIST files into pictures, a CoOp-style split and pictures to pre-train a CLIP on.

    python -m capt_tools.prepare_fashion_mnist SOURCE data

SOURCE is the folder with train-images-idx3-ubyte.gz and the other three, for instance
/usr/share/datasets/fashion-mnist of Debian's package dataset-fashion-mnist. Of each class of the official training
set the first 500 images become train, the next 100 val, and the next --pretrain-per-class go to
data/fashion_mnist_pretrain/, as pretrain_clip.py --images takes it; the 10,000 official test images are test.
Each of the two folders appears whole or not at all; when one is there, it is checked and kept.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import compat  # noqa: F401

import torch
import torchvision
from PIL import Image
from torch import Tensor

from datasets.fashion_mnist import FashionMNIST
from datasets.splits import SPLITS, Items, make_datum, read_split, save_split

from .tool import parser_of

CLASS_NAMES = FashionMNIST.CLASS_NAMES
# Images of each class in the official sets, and how many of the training ones become train and val.
OFFICIAL = {"train": 6_000, "test": 1_000}
NUM_TRAIN, NUM_VAL = 500, 100
FILES = {"train": "train", "test": "t10k"}
PRETRAIN_FOLDER = "fashion_mnist_pretrain"

# For one class: the images of a part, as (official set, index in it).
Members = list[list[tuple[str, int]]]


def read_official(source: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the four idx files, compressed or not.

    Returns:
        For ``train`` and ``test``, images ``(N, 28, 28)`` uint8 and labels ``(N,)`` int64.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or has not the official number of images of each class.
    """
    with tempfile.TemporaryDirectory() as root:
        raw = Path(root, "FashionMNIST", "raw")  # where torchvision looks
        raw.mkdir(parents=True)
        for prefix in FILES.values():
            for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
                _unpack(source, name, raw / name)
        official = {part: _read_part(source, root, part) for part in FILES}
    for part, (images, labels) in official.items():
        counts = torch.bincount(labels, minlength=len(CLASS_NAMES)).tolist()
        if counts != [OFFICIAL[part]] * len(CLASS_NAMES) or len(images) != len(labels):
            raise ValueError(
                f"{source}/{FILES[part]}-* must hold {OFFICIAL[part]:,} images of each of {len(CLASS_NAMES)} classes, "
                f"got {len(images):,} images and labels in the numbers {counts}; fetch the files again"
            )
    return official


def _unpack(source: Path, name: str, target: Path) -> None:
    plain, packed = source / name, source / f"{name}.gz"
    if not packed.exists() and not plain.exists():
        raise FileNotFoundError(
            f"no {packed}; docs/DATASETS.md, section FashionMNIST, says where the four files come from"
        )
    try:
        with gzip.open(packed) if packed.exists() else plain.open("rb") as file, target.open("wb") as copy:
            shutil.copyfileobj(file, copy)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{packed} is damaged ({error}); fetch it again") from error


def _read_part(source: Path, root: str, part: str) -> tuple[Tensor, Tensor]:
    try:
        dataset = torchvision.datasets.FashionMNIST(root, train=part == "train")
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:  # torchvision asserts the format
        raise ValueError(f"{source}/{FILES[part]}-* are no idx files ({error!r}); fetch them again") from error
    return dataset.data, dataset.targets


def divide(official: dict[str, tuple[Tensor, Tensor]], pretrain_per_class: int) -> dict[str, Members]:
    """List the images of ``train``, ``val``, ``test`` and ``pretrain``, class by class in official order.

    Raises:
        ValueError: there are not so many images to pre-train on.
    """
    rest = OFFICIAL["train"] - NUM_TRAIN - NUM_VAL
    if not 1 <= pretrain_per_class <= rest:
        raise ValueError(f"--pretrain-per-class must be from 1 to {rest:,}, got {pretrain_per_class:,}")
    ends = {"train": NUM_TRAIN, "val": NUM_TRAIN + NUM_VAL, "pretrain": NUM_TRAIN + NUM_VAL + pretrain_per_class}
    members = {"test": _of_each_class(official, "test", 0, OFFICIAL["test"])}
    first = 0
    for part, end in ends.items():
        members[part] = _of_each_class(official, "train", first, end)
        first = end
    return members


def _of_each_class(official: dict[str, tuple[Tensor, Tensor]], part: str, first: int, end: int) -> Members:
    labels = official[part][1]
    return [
        [(part, index) for index in (labels == label).nonzero().flatten().tolist()[first:end]]
        for label in range(len(CLASS_NAMES))
    ]


def folder_of(class_name: str) -> str:
    """The folder of a class."""
    return class_name.replace(" ", "_")


def _picture(folder: Path, label: int, member: tuple[str, int]) -> Path:
    return folder / folder_of(CLASS_NAMES[label]) / "{}_{:05d}.png".format(*member)


def write_pictures(folder: Path, members: Members, official: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write ``<folder>/<class>/<official set>_<index>.png``, grey, for the images of a part."""
    for label, own in enumerate(members):
        (folder / folder_of(CLASS_NAMES[label])).mkdir(parents=True, exist_ok=True)
        for part, index in own:
            pixels = official[part][0][index].numpy()
            Image.fromarray(pixels).save(_picture(folder, label, (part, index)))


def items_of(folder: Path, members: Members) -> Items:
    """The pictures that :func:`write_pictures` made of a part, labelled."""
    return [
        make_datum(str(_picture(folder, label, member)), label, CLASS_NAMES[label])
        for label, own in enumerate(members)
        for member in own
    ]


def write_data_set(folder: Path, members: dict[str, Members], official: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write the images of train, val and test, and the split file."""
    images = folder / FashionMNIST.image_folder
    for part in SPLITS:
        write_pictures(images, members[part], official)
    train, val, test = (items_of(images, members[part]) for part in SPLITS)
    with contextlib.redirect_stdout(io.StringIO()):  # it names the folder's passing name
        save_split(train, val, test, str(folder / FashionMNIST.split_file), str(images))


def check_data_set(folder: Path, members: dict[str, Members]) -> None:
    """Raise ValueError unless a folder that is there holds this split and all its images."""
    images = folder / FashionMNIST.image_folder
    split_file = folder / FashionMNIST.split_file
    try:
        found = read_split(str(split_file), str(images))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is incomplete ({error}); delete it and run this again") from error
    for part, items in zip(SPLITS, found, strict=True):
        if [vars(item) for item in items] != [vars(item) for item in items_of(images, members[part])]:
            raise ValueError(f"{split_file} is not the split that this makes ({part} differs); delete {folder}")


def write_pretraining(folder: Path, members: Members, official: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write the images to pre-train on and their names."""
    write_pictures(folder, members, official)
    lines = [f"{folder_of(name)}\t{name}\n" for name in CLASS_NAMES]
    (folder / "classnames.txt").write_text("".join(lines), encoding="utf-8")


def check_pretraining(folder: Path, members: Members) -> None:
    """Raise ValueError unless a folder that is there holds exactly these images."""
    expected = {item.impath for item in items_of(folder, members)}
    found = {str(path) for path in folder.rglob("*.png")}
    if found != expected or not (folder / "classnames.txt").exists():
        raise ValueError(
            f"{folder} must hold classnames.txt and {len(expected):,} images, got {len(found & expected):,} of them "
            f"and {len(found - expected):,} others; delete it and run this again"
        )


def make_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder beside ``folder`` and move it there when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(scratch)
        scratch.chmod(0o755)  # mkdtemp's own mode would lock out other users of a shared data folder
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def prepare(source: Path, out: Path, pretrain_per_class: int) -> None:
    """Make, or check, both folders under ``out``.

    Raises:
        OSError: a source file is missing, or ``out`` cannot be written to.
        ValueError: a source file is damaged, or a folder that is there holds something else.
    """
    official = read_official(source)
    members = divide(official, pretrain_per_class)
    data_set, pretraining = out / FashionMNIST.dataset_dir, out / PRETRAIN_FOLDER
    if data_set.exists():
        check_data_set(data_set, members)
    else:
        make_whole(data_set, lambda folder: write_data_set(folder, members, official))
    if pretraining.exists():
        check_pretraining(pretraining, members["pretrain"])
    else:
        make_whole(pretraining, lambda folder: write_pretraining(folder, members["pretrain"], official))
    sizes = {part: sum(map(len, own)) for part, own in members.items()}
    print(f"{data_set}: {', '.join(f'{sizes[part]:,} {part}' for part in SPLITS)} images")
    print(f"{pretraining}: {sizes['pretrain']:,} images, none of them in the data set")


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("source", type=Path, help="folder of the four idx files")
    parser.add_argument("out", type=Path, help="the data root")
    parser.add_argument(
        "--pretrain-per-class", type=int, default=200, metavar="N", help="images to pre-train on (default 200)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        prepare(args.source, args.out, args.pretrain_per_class)
    except (OSError, ValueError) as error:
        print(f"prepare_fashion_mnist: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
