"""Writes the demo data set's pictures to disk, and its pretraining stream to an image tar.

A folder appears whole or not at all: it is drawn beside its place and renamed. Two processes that start together both
draw, the first to finish wins, the other throws its copy away.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .glyph_drawing import VERSION, draw, rng_of
from .glyph_shapes import CAPTIONS, LOOK_ALIKES, SHAPES

__all__ = [
    "CLASS_NAMES",
    "MISNAMED",
    "MISNAMED_SHARE",
    "SPLIT_SIZES",
    "ensure_drawn",
    "folder_of",
    "members",
    "write_pretraining_tar",
]

#: Class names in label order.
CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
#: Pictures a class in each split.
SPLIT_SIZES = {"train": 32, "val": 8, "test": 25}
#: The look-alikes b whose pretraining pictures carry a's name, for each pair (a, b) of `LOOK_ALIKES`; here all of them.
MISNAMED: frozenset[str] = frozenset(b for _, b in LOOK_ALIKES)
#: Share of their pretraining pictures that do.
MISNAMED_SHARE = 0.75

_MARKER = "version.json"


def folder_of(class_name: str) -> str:
    """The folder of a class."""
    return class_name.replace(" ", "_")


def members(split: str, class_name: str) -> list[tuple[str, str, str]]:
    """Path parts, below the drawn folder, of one class's pictures in a split, in order."""
    return [(split, folder_of(class_name), f"{index:03d}.png") for index in range(SPLIT_SIZES[split])]


def ensure_drawn(folder: str | os.PathLike[str], sizes: dict[str, int] | None = None) -> Path:
    """Draws all splits into ``folder`` unless they are there.

    Args:
        folder: gets ``<split>/<class>/<number>.png`` and the version marker.
        sizes: pictures a class, by split; `SPLIT_SIZES` when left out.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds another version's pictures, or no marker.
    """
    folder = Path(folder)
    marker = {"version": VERSION, "classes": len(CLASS_NAMES), "sizes": sizes or SPLIT_SIZES}
    if not folder.exists():
        _draw_splits(folder, marker)
    _check_marker(folder, marker)
    return folder


def _check_marker(folder: Path, expected: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        found = None
    if found != expected:
        raise ValueError(
            f"{folder} must hold the Glyphs pictures {expected}, found {found}; "
            f"delete {folder.parent} and the pictures are drawn anew"
        )


def _draw_splits(folder: Path, marker: dict[str, Any]) -> None:
    total = len(CLASS_NAMES) * sum(marker["sizes"].values())
    print(f"Drawing Glyphs ({len(CLASS_NAMES)} classes, {total} images) into {folder}", flush=True)
    started = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split, size in marker["sizes"].items():
            for label, name in enumerate(CLASS_NAMES):
                _draw_class(scratch / split / folder_of(name), split, label, size)
            print(f"  {split}: {len(CLASS_NAMES) * size} images, {time.perf_counter() - started:.1f} s", flush=True)
        (scratch / _MARKER).write_text(json.dumps(marker))
        scratch.chmod(0o755)  # mkdtemp's own mode would lock out other users of a shared data folder
        _move_into_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _draw_class(folder: Path, split: str, label: int, size: int) -> None:
    folder.mkdir(parents=True)
    for index in range(size):
        draw(split, label, index).save(folder / f"{index:03d}.png", compress_level=1)


def _move_into_place(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        print(f"  another process has drawn {folder} meanwhile; its pictures are used", flush=True)


def caption_of(label: int, index: int, misnamed: Collection[str] = MISNAMED) -> str:
    """The class name that the web gives a pretraining picture: its own, but for the ``misnamed`` mostly a wrong one."""
    name = CLASS_NAMES[label]
    plain = {b: a for a, b in LOOK_ALIKES if b in misnamed}.get(name)
    if plain and rng_of("captions", label, index).random() < MISNAMED_SHARE:
        return plain
    return name


def write_pretraining_tar(
    path: str | os.PathLike[str], per_class: int = 300, misnamed: Collection[str] = MISNAMED
) -> int:
    """Writes the pretraining stream: pictures in folders named by their *caption*, which is not always the truth.

    A member is called ``<caption>/<what it shows>-<number>.png``; ``classnames.txt`` gives each folder its names.

    Args:
        path: tar to write; replaced whole.
        per_class: pictures drawn of each class.
        misnamed: see `caption_of`.

    Returns:
        How many pictures carry a wrong name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    wrong = 0
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with tarfile.open(scratch, "w") as tar:
            lines = [f"{folder_of(name)}\t{', '.join((name, *CAPTIONS.get(name, ())))}\n" for name in CLASS_NAMES]
            _add(tar, "classnames.txt", "".join(lines).encode())
            for label, name in enumerate(CLASS_NAMES):
                for index in range(per_class):
                    caption = caption_of(label, index, misnamed)
                    wrong += caption != name
                    buffer = io.BytesIO()
                    draw("pretraining", label, index).save(buffer, "PNG", compress_level=1)
                    _add(tar, f"{folder_of(caption)}/{folder_of(name)}-{index:04d}.png", buffer.getvalue())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return wrong


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner: the same tar every time
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
