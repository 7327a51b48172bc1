"""Where a host's entry point is, and what CoOp's layout has that the host lacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Host", "RefusedError", "find_host"]

ENTRIES = ("train.py", "main.py")
NEEDED = ("datasets", "configs/datasets")
MADE = ("trainers", "configs/trainers")  # made where the host keeps its own trainers elsewhere


class RefusedError(ValueError):
    """Nothing was changed; the message says why."""


@dataclass(frozen=True)
class Host:
    """A repository to put the plugin into.

    Attributes:
        root: folder of the entry point.
        entry: its name: ``train.py``, or ``main.py``.
    """

    root: Path
    entry: str

    @property
    def path(self) -> Path:
        """The entry point itself."""
        return self.root / self.entry

    def source(self) -> str:
        """The entry point's text, line endings as they are.

        Raises:
            RefusedError: it is not in UTF-8.
        """
        try:
            return self.path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise RefusedError(f"{self.path} is not in UTF-8") from error

    @property
    def made(self) -> list[str]:
        """Folders that CoOp's layout has and this host has not; they come with the plugin."""
        return [name for name in MADE if not (self.root / name).is_dir()]


def find_host(folder: Path) -> Host:
    """The host in ``folder``, or the only one in a folder below it, as some keep their code.

    Raises:
        RefusedError: there is none, or more than one; names what was looked for.
    """
    if host := _host_in(folder):
        return host
    below = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [host for path in below if (host := _host_in(path))]
    if len(found) > 1:
        listed = ", ".join(str(host.root) for host in found)
        raise RefusedError(f"{folder} holds {len(found)} repositories; name one of {listed}")
    if found:
        return found[0]
    missing = [name for name in NEEDED if not (folder / name).is_dir()]
    if not any(_is_entry(folder / name) for name in ENTRIES):
        missing.append(f"{' or '.join(ENTRIES)} that imports dassl")
    if not missing:
        raise RefusedError(f"{folder} cannot take the folder trainers/: it has a trainers.py, which that would hide")
    raise RefusedError(f"{folder} is no CoOp-style repository: it has no {', no '.join(missing)}")


def _host_in(folder: Path) -> Host | None:
    if not all((folder / name).is_dir() for name in NEEDED) or (folder / "trainers.py").exists():
        return None
    return next((Host(folder, name) for name in ENTRIES if _is_entry(folder / name)), None)


def _is_entry(path: Path) -> bool:
    return path.is_file() and b"dassl" in path.read_bytes()
