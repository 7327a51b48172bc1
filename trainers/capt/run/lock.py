"""One run in an output folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .distributed import is_first

__all__ = ["FolderInUseError", "hold_folder"]

NAME = ".run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # file systems without locks

_held: set[Path] = set()  # a process that holds a lock gets it once more from the system, and loses it at a close


class FolderInUseError(OSError):
    """Another run is at work in the folder; the message names its host and process."""


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs out of ``folder``, which is made; the system itself lets go when this process ends, however.

    A run may hold its folder twice, as train.py and the trainer do. Of several processes the first one holds it.

    Raises:
        FolderInUseError: another process holds it.
        OSError: nothing can be written there.
    """
    path = Path(folder or ".").resolve() / NAME
    if path in _held or not is_first():
        yield
        return
    descriptor = _lock(path)
    _held.add(path)
    try:
        _note_holder(descriptor, path)
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock goes, so that nobody locks a file that is about to vanish
        os.close(descriptor)


def _note_holder(descriptor: int, path: Path) -> None:
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        raise _unusable(path, error) from error


def _lock(path: Path) -> int:
    """The open, locked file ``path``."""
    while True:
        descriptor = _opened(path)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(descriptor)
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                descriptor = _without_locks(path, holder)
            else:
                raise _in_use(path, holder) from None
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)  # its last holder has removed it meanwhile


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> OSError:
    reason = f"{error.strerror}, so no run can use it; give another output folder"
    return OSError(error.errno, reason, str(path.parent))


def _without_locks(path: Path, holder: dict[str, Any]) -> int:
    """The opened file where the file system has no locks: what it says must do, and only of this host is it certain."""
    if holder and holder.get("host") == socket.gethostname() and _lives(holder.get("process")):
        raise _in_use(path, holder)
    print(f"The file system has no locks: make sure that no other run uses {path.parent}")
    return _opened(path)


def _lives(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _read(descriptor: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}  # its holder is about to write it
    return content if isinstance(content, dict) else {}


def _in_use(path: Path, holder: dict[str, Any]) -> FolderInUseError:
    who = f"process {holder.get('process', 'unknown')} on {holder.get('host', 'an unknown host')}"
    since = f" since {holder['since']}" if "since" in holder else ""
    return FolderInUseError(f'"{path.parent}" is in use by {who}{since}; wait for it, or give another output folder')
