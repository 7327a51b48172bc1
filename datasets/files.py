"""Small file helpers of the data sets: the error for what is missing, and writing without half-written files."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Any


class DataNotFoundError(FileNotFoundError):
    """A file or folder of a data set is missing; the message names it and the section of docs/DATASETS.md."""


def atomic_write(path: str, content: bytes) -> None:
    """Write ``content`` beside ``path`` and move it there, so that no reader ever sees half a file.

    Folders are made as needed, but never inside one that is marked read-only.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = os.path.dirname(path)
    _refuse_read_only(folder)
    os.makedirs(folder, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)  # mkstemp makes private files, a shared data folder wants ordinary ones
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def _refuse_read_only(folder: str) -> None:
    """Raise PermissionError if nobody has a write bit on ``folder``, or on what it would be made in.

    The system itself lets root write there all the same, which in containers is nearly everybody.
    """
    existing = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    if not existing.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EACCES, "the folder is marked read-only", str(existing))


def read_matlab(path: str) -> dict[str, Any]:
    """The variables of a MATLAB file by name."""
    from scipy.io import loadmat  # takes a tenth of a second, which runs on other data sets need not wait for

    variables: dict[str, Any] = loadmat(path)
    return variables
