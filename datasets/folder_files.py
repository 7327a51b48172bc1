"""What lies in a folder of images: class folders, readable images, class names, a prompt template."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from trainers.capt.run.pictures import ImageError, read_image

from .splits import list_folders

__all__ = ["IMAGE_SUFFIXES", "find_damaged", "list_tree", "read_classnames", "read_template"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def list_tree(folder: str) -> tuple[dict[str, list[str]], int]:
    """Images of each class folder inside ``folder``, at any depth, sorted; and how many other files lie there.

    Class folders are sorted bytewise, as in the other data sets read from folders; hidden ones are no class.
    """
    images: dict[str, list[str]] = {}
    num_others = 0
    for name in list_folders(folder):
        files = sorted(
            str(path)
            for path in Path(folder, name).rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        images[name] = [path for path in files if Path(path).suffix.lower() in IMAGE_SUFFIXES]
        num_others += len(files) - len(images[name])
    return images, num_others


def find_damaged(paths: Iterable[str]) -> dict[str, str]:
    """The files that cannot be decoded to the end, with the reason."""
    paths = list(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reasons = tqdm(pool.map(_damage, paths), total=len(paths), desc="Reading images", disable=_quiet())
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _quiet() -> bool:
    return not sys.stderr.isatty()


def _damage(path: str) -> str:
    try:
        read_image(path, shown=True, side=64)  # a JPEG is still read to its end, but decoded small
    except ImageError as error:
        return error.reason
    return ""


def read_classnames(path: str, folders: Iterable[str]) -> dict[str, str]:
    """Class name of each folder: what ``classnames.json`` says, ``{"folder": "name"}``, else the folder's own name.

    Raises:
        ValueError: the file is no such JSON, or names a folder that is not there.
    """
    names = {folder: folder for folder in folders}
    if not os.path.exists(path):
        return names
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); mend or remove it") from error
    if not isinstance(given, dict) or not all(isinstance(v, str) and v.strip() for v in given.values()):
        raise ValueError(f'{path} must hold {{"folder": "class name", ...}}, a name being one text; mend or remove it')
    unknown = sorted(given.keys() - names.keys())
    if unknown:
        raise ValueError(f"{path} names {unknown[0]!r}, which is no class folder; the folders are {sorted(names)[:8]}")
    return names | given


def read_template(path: str) -> str | None:
    """The prompt template of ``template.txt``, one line with ``{}`` for the class name; None without that file.

    Raises:
        ValueError: the file holds something else.
    """
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip()]
    if len(lines) != 1 or lines[0].count("{}") != 1:
        raise ValueError(f'{path} must hold one line with one "{{}}" for the class name, e.g. "a photo of a {{}}."')
    return lines[0]
