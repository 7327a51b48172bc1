"""What is known of a sweep, in files below its output folder, so that any later command finds it again.

    OUTPUT/sweeps/NAME/sweep.json      what was asked for, and the jobs it was sent in
    OUTPUT/sweeps/NAME/cells/KEY.log   what the runs of a cell printed
    OUTPUT/sweeps/NAME/cells/KEY.json  how the cell stands where its runs' folders do not say it
    OUTPUT/sweeps/NAME/slurm/          Slurm's and submitit's own

A run is done where its folder holds results.json: that rule is the scripts', and no file here repeats it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..dropping.tree import write_bytes
from ..plan.settings import Settings
from ..plan.steps import StopError
from .cells import Cell, Node, graph

__all__ = ["Record", "Sweep", "last_line"]

# Where these differ, runs are the same all the same.
FREE = ("python", "house", "is_dry", "seeds", "nproc")


@dataclass(frozen=True)
class Record:
    """How a cell stands.

    Attributes:
        state: running, failed, interrupted or cancelled.
        line: why, in one line.
    """

    state: str
    line: str = ""


@dataclass
class Sweep:
    """A sweep, as its sweep.json tells it.

    Attributes:
        folder: where its files are.
        protocol: base2new, xd or few_shot.
        settings: of all its runs.
        cluster: slurm, local or debug.
        cells: in the order in which they were asked for.
        jobs: key of a cell -> Slurm's id of the job that it was sent in last.
        sending: name and cells of the jobs that are being sent; empty where that has ended.
    """

    folder: Path
    protocol: str
    settings: Settings
    cluster: str
    cells: list[Cell]
    jobs: dict[str, str] = field(default_factory=dict)
    sending: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, output: str, name: str) -> Sweep:
        """The sweep of this name.

        Raises:
            StopError: there is none, or its file is damaged.
        """
        path = Path(output, "sweeps", name, "sweep.json")
        if not path.is_file():
            others = sorted(file.parent.name for file in path.parent.parent.glob("*/sweep.json"))
            listed = f"there are: {' '.join(others)}" if others else "capt sweep submit makes one"
            raise StopError(f"no sweep {name} in {path.parent.parent}; {listed}")
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            words: dict[str, Any] = {
                key: tuple(v) if isinstance(v, list) else v for key, v in stored.pop("settings").items()
            }
            cells = [Cell(*cell) for cell in stored.pop("cells")]
            return cls(path.parent, settings=Settings(**words), cells=cells, **stored)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StopError(f"{path} is damaged ({error}); remove it and submit again: done runs stay done") from error

    def save(self) -> None:
        """Write sweep.json, whole or not at all.

        Raises:
            StopError: the folder cannot be written to.
        """
        stored = {key: value for key, value in vars(self).items() if key != "folder"}
        stored["settings"] = asdict(self.settings)
        try:
            (self.folder / "cells").mkdir(parents=True, exist_ok=True)
            write_bytes(self.folder / "sweep.json", (json.dumps(stored, indent=1) + "\n").encode())
        except OSError as error:
            raise StopError(
                f"cannot write to {self.folder} ({error.strerror}); set OUTPUT to another folder"
            ) from error

    def extend(self, other: Sweep) -> None:
        """Take the cells of another call for the same sweep, and how it wants them run.

        Raises:
            StopError: its runs would be others.
        """
        mine, theirs = asdict(self.settings), asdict(other.settings)
        changed = [key for key in mine if key not in FREE and mine[key] != theirs[key]]
        if self.protocol != other.protocol:
            changed.append("protocol")
            mine["protocol"], theirs["protocol"] = self.protocol, other.protocol
        if changed:
            listed = ", ".join(f"{key} {_shown(mine[key])} there, {_shown(theirs[key])} here" for key in changed)
            raise StopError(f"{self.folder} holds another sweep ({listed}); give this one another --name")
        self.settings, self.cluster = other.settings, other.cluster
        self.cells += [cell for cell in other.cells if cell not in self.cells]

    def nodes(self) -> list[Node]:
        """The cells with their runs and what they wait for."""
        return graph(self.settings, self.protocol, self.cells)

    def log(self, cell: Cell) -> Path:
        """What the runs of a cell print."""
        return self.folder / "cells" / f"{cell.key}.log"

    def record(self, cell: Cell) -> Record | None:
        """How a cell stands, where that was noted."""
        try:
            return Record(**json.loads((self.folder / "cells" / f"{cell.key}.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def note(self, cell: Cell, record: Record | None) -> None:
        """Note how a cell stands."""
        path = self.folder / "cells" / f"{cell.key}.json"
        if record is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, json.dumps(vars(record)).encode())


def last_line(path: Path) -> str:
    """The last line of a log that says something; empty where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value) or "not set"
