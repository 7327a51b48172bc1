"""Downloads beside a data set, then moves into it: a killed run leaves nothing that looks whole, and goes on later.

What is being fetched lies in ``.get_data`` inside the data set's folder, so that each move is one step on one disk:

1. torchvision downloads and unpacks there. Archives of an earlier, killed run are used again where torchvision can
   verify them; what had been unpacked from them is not trusted and made anew.
2. A mark says that this is done. From here on no network is needed.
3. Images and lists move to their places, and the rest is removed.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import urllib.error
import zipfile
import zlib
from pathlib import Path

import torchvision

from .sources import Source

__all__ = ["FetchError", "fetch"]

STAGING = ".get_data"
MARK = "unpacked"
ARCHIVES = (".zip", ".gz", ".tgz")
# torchvision has a RuntimeError for a wrong checksum, and a ValueError for a set whose source is gone
FAILURES = (OSError, RuntimeError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class FetchError(Exception):
    """A data set could not be fetched; the message says why."""


def fetch(source: Source, root: Path) -> None:
    """Bring a data set's images and lists into its folder under ``root``.

    Raises:
        FetchError: the download failed, or something is in the way.
    """
    folder = root / source.folder
    staging = folder / STAGING
    if not (staging / MARK).is_file():
        _refuse_to_overwrite(source, folder)
        try:
            staging.mkdir(parents=True, exist_ok=True)
            _keep_archives_alone(staging, source.is_verified)
            _download(source, staging)
        except urllib.error.URLError as error:
            raise FetchError(f"its source does not answer ({error})") from error
        except FAILURES as error:
            raise FetchError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        (staging / MARK).touch()
    _move(source, staging, folder)
    shutil.rmtree(staging)


def _refuse_to_overwrite(source: Source, folder: Path) -> None:
    there = [name for name in source.places.values() if (folder / name).exists()]
    if there:
        raise FetchError(f"{folder / there[0]} is there, but incomplete; move it away, then ask again")


def _keep_archives_alone(staging: Path, is_verified: bool) -> None:
    """Remove what a killed run unpacked; torchvision would take a folder that exists for a whole one."""
    for place in [path for path in staging.iterdir() if path.is_dir()] + [staging]:
        for path in place.iterdir():
            if path.is_dir() and place != staging:
                shutil.rmtree(path)
            elif path.is_file() and not (is_verified and path.suffix in ARCHIVES):
                path.unlink()
        if place != staging and not any(place.iterdir()):
            place.rmdir()


def _download(source: Source, staging: Path) -> None:
    getattr(torchvision.datasets, source.downloader)(str(staging), download=True)


def _move(source: Source, staging: Path, folder: Path) -> None:
    for origin, target in source.places.items():
        if (staging / origin).exists():
            os.replace(staging / origin, folder / target)
        elif not (folder / target).exists():
            raise FetchError(
                f"{origin} was not in what {source.downloader} downloaded; remove {staging}, then ask again"
            )
