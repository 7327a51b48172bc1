"""Train/val/test splits of CoOp: lists of ``Datum``, the split files, and how a missing split file is made.

After: CoOp (Zhou et al., IJCV 2022), whose ``split_zhou_<Name>.json`` files fix the images of most data sets::

    {"train": [["accordion/image_0001.jpg", 3, "accordion"], ...], "val": [...], "test": [...]}

Paths are relative to the image folder. Random choices take their generator as an argument; without one they draw from
Python's global ``random``, as CoOp does.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from dassl.data.datasets import Datum

from .files import DataNotFoundError, atomic_write

SPLITS = ("train", "val", "test")
Items = list[Datum]


def make_datum(impath: str, label: int, classname: str) -> Datum:
    """Build a ``Datum`` without asking the file system whether its image exists.

    ``Datum(...)`` looks at every file and fails without a text. Here files are checked once, together, by
    :func:`check_images`, or are known to exist because they were just listed (1.3 million of them for ImageNet).
    """
    item = Datum.__new__(Datum)
    item._impath, item._label, item._domain, item._classname = impath, int(label), 0, classname
    return item


def check_images(items: Iterable[Datum], image_dir: str, where: str) -> None:
    """Raise :class:`DataNotFoundError` that counts and shows the images of ``items`` that are not there."""
    items = list(items)
    missing = [item.impath for item in items if not os.path.isfile(item.impath)]
    if missing:
        examples = ", ".join(os.path.relpath(path, image_dir) for path in missing[:3])
        raise DataNotFoundError(
            f"{len(missing):,} of {len(items):,} listed images are missing under {image_dir}, e.g. {examples}; {where}"
        )


def load_split(filepath: str, path_prefix: str) -> tuple[Items, Items, Items]:
    """Read a split file without checking that its images exist.

    Raises:
        ValueError: the file is not a split file.
    """
    try:
        with open(filepath, encoding="utf-8") as file:
            split = json.load(file)
        train, val, test = (
            [make_datum(os.path.join(path_prefix, path), label, name) for path, label, name in split[part]]
            for part in SPLITS
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{filepath} is not a split file, which holds lists of [path, label, class name] under train, val and "
            f"test ({type(error).__name__}: {error}); fetch it again"
        ) from error
    return train, val, test


def read_split(filepath: str, path_prefix: str) -> tuple[Items, Items, Items]:
    """Read ``train, val, test`` from a split file whose paths are relative to ``path_prefix``.

    Raises:
        DataNotFoundError: listed images are missing.
        ValueError: the file is not a split file.
    """
    print(f"Reading split from {filepath}")
    train, val, test = load_split(filepath, path_prefix)
    check_images([*train, *val, *test], path_prefix, "see docs/DATASETS.md")
    return train, val, test


def save_split(train: Items, val: Items, test: Items, filepath: str, path_prefix: str) -> None:
    """Write a split file in CoOp's form.

    Raises:
        OSError: the folder cannot be written to.
    """
    split = {
        part: [
            (os.path.relpath(item.impath, path_prefix).replace(os.sep, "/"), item.label, item.classname)
            for item in items
        ]
        for part, items in zip(SPLITS, (train, val, test), strict=True)
    }
    atomic_write(filepath, json.dumps(split, indent=4, separators=(",", ": ")).encode())
    print(f"Saved split to {filepath}")


def split_trainval(trainval: Items, p_val: float = 0.2, rng: random.Random | None = None) -> tuple[Items, Items]:
    """Take ``p_val`` of each class for validation; classes in order of first appearance, one shuffle each.

    Raises:
        ValueError: a class is too small to give a validation image.
    """
    print(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
    by_label: dict[int, Items] = defaultdict(list)
    for item in trainval:
        by_label[item.label].append(item)

    train, val = [], []
    for items in by_label.values():
        num_val = round(len(items) * p_val)
        if num_val == 0:
            raise ValueError(
                f"class {items[0].classname!r} must have enough images for one of them to be a validation image, "
                f"got {len(items)}"
            )
        (rng or random).shuffle(items)
        val += items[:num_val]
        train += items[num_val:]
    return train, val


def split_in_three(
    items: Items, p_trn: float = 0.5, p_val: float = 0.2, rng: random.Random | None = None
) -> tuple[Items, Items, Items]:
    """Shuffle the images of one class (in place) and cut them into train, val and test.

    Raises:
        ValueError: a part would be empty.
    """
    (rng or random).shuffle(items)
    num_train, num_val = round(len(items) * p_trn), round(len(items) * p_val)
    parts = items[:num_train], items[num_train : num_train + num_val], items[num_train + num_val :]
    if not all(parts):
        name = items[0].classname if items else "?"
        raise ValueError(f"class {name!r} must have enough images for train, val and test, got {len(items)}")
    return parts


def list_folders(folder: str) -> list[str]:
    """Names of the visible folders inside ``folder``, sorted bytewise (capitals first)."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: str) -> list[str]:
    """Paths of the visible files of ``folder``, sorted.

    CoOp keeps the file system's order here, so what it draws depends on the disk; sorted, it is the same everywhere.
    """
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def read_and_split_data(
    image_dir: str,
    p_trn: float = 0.5,
    p_val: float = 0.2,
    ignored: Sequence[str] = (),
    new_cnames: Mapping[str, str] | None = None,
    rng: random.Random | None = None,
) -> tuple[Items, Items, Items]:
    """Split a folder-per-class tree into train, val and test.

    Args:
        image_dir: holds one folder per class; the label is the folder's place in the sorted list.
        p_trn: share of each class for training.
        p_val: share of each class for validation; the rest is for testing.
        ignored: folders that are no class.
        new_cnames: folder name -> class name, where they differ.
        rng: source of the shuffles, the global ``random`` by default.

    Raises:
        ValueError: a class has too few images.
    """
    print(f"Splitting into {p_trn:.0%} train, {p_val:.0%} val, and {1 - p_trn - p_val:.0%} test")
    train: Items = []
    val: Items = []
    test: Items = []
    folders = [name for name in list_folders(image_dir) if name not in ignored]
    for label, folder in enumerate(folders):
        classname = (new_cnames or {}).get(folder, folder)
        items = [make_datum(path, label, classname) for path in list_images(os.path.join(image_dir, folder))]
        if not items:
            raise ValueError(f"class folder {os.path.join(image_dir, folder)} must hold images, got none")
        for part, chosen in zip((train, val, test), split_in_three(items, p_trn, p_val, rng), strict=True):
            part += chosen
    return train, val, test


def subsample_classes(*sources: Items, subsample: str = "all") -> Sequence[Items]:
    """Keep the first half of the classes (``base``), the second half (``new``) or all of them.

    The halves are those of the labels that occur in the first source (the training set); an odd class goes to base.
    Labels start at 0 again in each half. ``all`` returns the sources unchanged.

    Raises:
        ValueError: ``subsample`` is none of the three words.
    """
    if subsample not in ("all", "base", "new"):
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES must be all, base or new, got {subsample!r}")
    if subsample == "all":
        return sources

    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    labels = sorted({item.label for item in sources[0]})
    middle = math.ceil(len(labels) / 2)
    selected = labels[:middle] if subsample == "base" else labels[middle:]
    new_label = {label: i for i, label in enumerate(selected)}
    return [
        [make_datum(item.impath, new_label[item.label], item.classname) for item in source if item.label in new_label]
        for source in sources
    ]
