"""Files, seeds, environment, name checks."""

import difflib
import json
import os
import os.path as osp
import random
import re
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
from PIL import Image

from .atomic import atomic_path

__all__ = [
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


T = TypeVar("T")


def mkdir_if_missing(dirname: str) -> None:
    """Create a folder with its parents; nothing happens if it exists. An empty name raises FileNotFoundError."""
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Return whether ``fpath`` is a file; warn if it is not."""
    found = osp.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def read_json(fpath: str) -> Any:
    """Return the content of a JSON file."""
    with open(fpath, encoding="utf-8") as f:
        return json.load(f)


def write_json(obj: object, fpath: str) -> None:
    """Write ``obj`` as JSON (indent 4); the parent folder is made, the file appears whole or not at all."""
    if osp.dirname(fpath):
        mkdir_if_missing(osp.dirname(fpath))
    with atomic_path(fpath) as part, open(part, "w", encoding="utf-8") as f:
        json.dump(obj, f, indent=4, separators=(",", ": "))


def set_random_seed(seed: int) -> None:
    """Seed ``random``, ``numpy`` and ``torch`` (CPU and every GPU)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the family's code draws from the global numpy generator
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def download_url(url: str, dst: str) -> None:
    """Download ``url`` to the file ``dst``, with a progress line on stdout."""
    print(f"Downloading {url} to {dst}")

    def progress(count: int, block_size: int, total_size: int) -> None:
        if total_size > 0:
            percent = min(100, int(100 * count * block_size / total_size))
            print(f"\r... {percent}%", end="", flush=True)

    with atomic_path(dst) as part:
        urllib.request.urlretrieve(url, part, progress)
    print()


def read_image(path: str) -> Image.Image:
    """Return the image file ``path`` as an RGB ``PIL.Image``.

    Raises:
        OSError: The file is missing or damaged; the message names it.
    """
    if not osp.exists(path):
        raise OSError(f"There is no file {path}; check DATASET.ROOT and that the data set is unpacked completely")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        raise OSError(
            f'Cannot read the image "{path}" ({type(error).__name__}: {error}); '
            "restore the file from the data set's archive or remove it from the split"
        ) from error


def collect_env_info() -> str:
    """Return torch's description of the environment, with Pillow's version below it.

    Of the second that it takes, nearly all is the start of a ``pip list``, whose lines are read without it.
    """
    from torch.utils import collect_env

    of_torch: Callable[..., Any] = collect_env.get_pip_packages
    collect_env.get_pip_packages = lambda run, *patterns: of_torch(_pip_list, *patterns)
    try:
        text: str = collect_env.get_pretty_env_info()
    finally:
        collect_env.get_pip_packages = of_torch
    return f"{text}\n        Pillow ({PIL.__version__})"


def _pip_list(command: object) -> tuple[int, str, str]:
    """Exit code, output and errors of ``pip list --format=freeze``, whoever is asked for it: a venv may have no pip."""
    lines: dict[str, str] = {}
    for package in metadata.distributions():
        name = package.metadata["Name"]
        if name:  # what lies half deleted has none
            lines.setdefault(re.sub(r"[-_.]+", "-", name).lower(), f"{name}=={package.version}")
    return 0, "\n".join(lines[key] for key in sorted(lines)), ""


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not start with a dot.

    Args:
        path: Folder.
        sort: Sort the names; otherwise they come in the operating system's order.
    """
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def get_most_similar_str_to_a_from_b(a: str, b: Sequence[str]) -> str | None:
    """Return the string of the list ``b`` that is most like ``a`` (the later one of equals), None if ``b`` is empty."""
    best, best_ratio = None, 0.0
    for candidate in b:
        ratio = difflib.SequenceMatcher(None, a, candidate).ratio()
        if ratio >= best_ratio:
            best, best_ratio = candidate, ratio
    return best


def check_availability(requested: str, available: Sequence[str]) -> None:
    """Raise a ValueError that names the nearest match unless ``requested`` is in the list ``available``."""
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(requested, available)
        raise ValueError(
            f"The requested one is expected to belong to {available}, but got [{requested}] (do you mean [{nearest}]?)"
        )


def tolist_if_not(x: T | list[T]) -> list[T]:
    """Wrap ``x`` in a list unless it is one."""
    return x if isinstance(x, list) else [x]
