"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator

__all__ = ["atomic_path"]


@contextlib.contextmanager
def atomic_path(fpath: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path beside ``fpath`` to write to; on success it is synced to disk and renamed to ``fpath``.

    A process killed meanwhile leaves the old file as it was. What it had written stays as the hidden file
    ``.<name>.part-<process id>`` and is never read.
    """
    folder, name = os.path.split(os.fspath(fpath))
    part = os.path.join(folder, f".{name}.part-{os.getpid()}")
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, fpath)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
