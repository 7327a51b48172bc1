"""Labelled pictures for pretraining, from image tars, folders and registered data sets, held in memory as bytes."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from capt.run.pictures import ImageError, read_image

__all__ = ["Pictures", "merge", "read_class_names", "read_dataset", "read_images"]

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
CLASS_NAME_FILE = "classnames.txt"


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they are called.

    Attributes:
        images: ``(N, 3, S, S)`` uint8.
        labels: ``(N,)`` int64, index into ``names``.
        names: for each label the names that a caption may use, the main one first.
    """

    images: Tensor
    labels: Tensor
    names: tuple[tuple[str, ...], ...]


def read_images(path: str, size: int, class_names: dict[str, tuple[str, ...]] | None = None) -> Pictures:
    """Reads an image tar or a folder: one sub-folder a class.

    Args:
        path: tar (also compressed) or folder.
        size: side S to which the pictures are scaled and cropped.
        class_names: names by sub-folder; when left out, ``classnames.txt`` in the tar or folder, and without one
            the sub-folders' own names with ``_`` read as a space.

    Raises:
        FileNotFoundError: there is no such tar or folder.
        ValueError: no picture in it, a picture that cannot be read, or a sub-folder without a name.
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"--images must be an image tar or a folder, there is no {path}")
    members = list(_folder_members(source) if source.is_dir() else _tar_members(source))
    if class_names is None:
        listed = [content for name, content in members if name == CLASS_NAME_FILE]
        class_names = parse_class_names(listed[0].decode(), f"{path}:{CLASS_NAME_FILE}") if listed else None
    found = sorted((m for m in members if Path(m[0]).suffix.lower() in IMAGE_SUFFIXES), key=lambda m: m[0])
    pictures = [(name.split("/")[0], name, content) for name, content in found if "/" in name]
    if not pictures:
        raise ValueError(f"{path} must hold pictures in class sub-folders, found none; is it the right folder?")
    folders = sorted({folder for folder, _, _ in pictures})
    names = class_names or {folder: (folder.replace("_", " "),) for folder in folders}
    nameless = [folder for folder in folders if folder not in names]
    if nameless:
        raise ValueError(
            f"{len(nameless)} sub-folders of {path} have no line in the class-name file, e.g. {nameless[0]}"
        )
    label_of = {folder: label for label, folder in enumerate(folders)}
    images = torch.stack([_decode(content, f"{path}:{name}", size, shown=True) for _, name, content in pictures])
    labels = torch.tensor([label_of[folder] for folder, _, _ in pictures])
    return Pictures(images, labels, tuple(names[folder] for folder in folders))


def read_dataset(name: str, root: str, split: str, size: int) -> Pictures:
    """Reads a split (``train``, ``val`` or ``test``) of a data set registered with Dassl, all classes, all shots."""
    from dassl.config import get_cfg_default
    from dassl.data.datasets import build_dataset

    import datasets  # noqa: F401

    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, root
    dataset = build_dataset(cfg)
    items = {"train": dataset.train_x, "val": dataset.val, "test": dataset.test}[split]
    if not items:
        raise ValueError(f"--split must be one that {name} has, {split} is empty")
    shown = getattr(dataset, "pictures", "stored") == "shown"
    images = torch.stack([_decode(Path(item.impath).read_bytes(), item.impath, size, shown) for item in items])
    names = tuple((class_name.replace("_", " "),) for class_name in dataset.classnames)
    return Pictures(images, torch.tensor([item.label for item in items]), names)


def merge(sources: Iterable[Pictures]) -> Pictures:
    """One set from several; classes with the same main name become one, with the names of all."""
    names: dict[str, list[str]] = {}
    images, labels = [], []
    for source in sources:
        keys = [own[0].lower() for own in source.names]
        for key, own in zip(keys, source.names, strict=True):
            known = names.setdefault(key, [])
            known.extend(name for name in own if name not in known)
        order = {key: label for label, key in enumerate(names)}
        to_merged = torch.tensor([order[key] for key in keys])
        images.append(source.images)
        labels.append(to_merged[source.labels])
    return Pictures(torch.cat(images), torch.cat(labels), tuple(map(tuple, names.values())))


def read_class_names(path: str) -> dict[str, tuple[str, ...]]:
    """Reads a class-name file; see `parse_class_names`."""
    return parse_class_names(Path(path).read_text(encoding="utf-8"), path)


def parse_class_names(text: str, where: str) -> dict[str, tuple[str, ...]]:
    """Lines ``folder<TAB>name, other name, ...``; a comma or a space may stand for the tab.

    Raises:
        ValueError: a line with a folder and no name.
    """
    names = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        folder, *rest = re.split(r"\t" if "\t" in line else r"[, ]", line.strip(), maxsplit=1)
        own = tuple(name.strip() for name in "".join(rest).split(",") if name.strip())
        if not own:
            raise ValueError(f"{where}, line {number} must be a folder and its names, got {line!r}")
        names[folder.strip()] = own
    return names


def _folder_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix.lower() in IMAGE_SUFFIXES or path.name == CLASS_NAME_FILE):
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name.removeprefix("./"), file.read()
    except tarfile.TarError as error:
        raise ValueError(f"{path} must be an image tar or a folder ({error})") from error


def _decode(content: bytes, where: str, size: int, shown: bool) -> Tensor:
    """Shorter side to ``size`` (bicubic), centre crop: (3, S, S) uint8, as CLIP's own transform."""
    try:
        image = read_image(io.BytesIO(content), shown)
    except ImageError as error:
        raise ValueError(f"{where} cannot be read as a picture ({error.reason})") from error
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
