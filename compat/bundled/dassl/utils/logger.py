"""Copy of stdout in a log file."""

import contextlib
import os
import os.path as osp
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from .tools import mkdir_if_missing

__all__ = ["Logger", "setup_logger"]


class Logger:
    """Stands in for ``sys.stdout``: what is written goes to the console and to a file.

    Everything else a stream offers (isatty, fileno, encoding, ...) is the console's. Closing closes the file only,
    and dropping the object closes nothing, so the console outlives it.

    Args:
        fpath: Log file, overwritten; None writes to the console only.
    """

    def __init__(self, fpath: str | None = None) -> None:
        # A second logger of a process takes the place of the first instead of writing into its file too.
        self.console: TextIO | None = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        self.file: TextIO | None = None
        if fpath is not None:
            mkdir_if_missing(osp.dirname(osp.abspath(fpath)))
            self.file = open(fpath, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as long as the logger

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name == "console":  # not yet set: a half-made object must not recurse
            raise AttributeError(name)
        return getattr(self.console, name)

    def write(self, msg: str) -> int:
        """Write to console and file.

        Raises:
            OSError: the file cannot be written, e.g. on a full disk; it is named, and given up.
        """
        if self.console is not None:
            self.console.write(msg)
        if self.file is not None:
            try:
                self.file.write(msg)
            except OSError as error:
                name, file, self.file = self.file.name, self.file, None
                with contextlib.suppress(OSError):  # what it holds back cannot be written either
                    file.close()
                raise OSError(error.errno, error.strerror, name) from error
        return len(msg)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush both; the file down to the disk."""
        if self.console is not None:
            self.console.flush()
        if self.file is not None:
            self.file.flush()
            with contextlib.suppress(OSError):  # pipes and some network file systems cannot sync
                os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output: str | None = None) -> None:
    """Copy everything printed from now on into a log file.

    Args:
        output: Folder (the file is ``log.txt`` in it) or a path that ends in ``.txt`` or ``.log``; None does nothing.
            An existing file is kept: the new one gets the time appended to its name.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else osp.join(output, "log.txt")
    if osp.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    previous = sys.stdout
    sys.stdout = Logger(fpath)
    if isinstance(previous, Logger):
        previous.close()
