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

    Raises:
        OSError: The file cannot be written, e.g. on a full disk; names ``fpath``.
    """
    folder, name = os.path.split(os.fspath(fpath))
    part = os.path.join(folder, f".{name}.part-{os.getpid()}")
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, fpath)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        code = _system_error(error)
        if code is not None:
            raise OSError(
                code, f"{os.strerror(code)}; what was saved before is still there", os.fspath(fpath)
            ) from error
        raise


def _system_error(error: BaseException | None) -> int | None:
    """The number of the system's error why a write failed; torch raises a RuntimeError of its own behind it."""
    while isinstance(error, Exception):
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None
