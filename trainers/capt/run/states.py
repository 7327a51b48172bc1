"""States of an unfinished run, one file each: where it is, what was trained, and whatever the next step depends on.

They lie in ``<run>/resume/``, apart from the family's checkpoints, and are small: frozen weights are built again from
the backbone. A file is a plain ``torch.save`` archive, read with ``weights_only=True``; the CRC-32 that it holds of
each part tells whether it is whole.
"""

from __future__ import annotations

import random
import re
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .distributed import is_first, world
from .files import damage_of, save_tensors, sync_file

__all__ = [
    "Position",
    "StateWriter",
    "StoredState",
    "drop_states",
    "newest_state",
    "rng_state",
    "set_rng_state",
    "states_in",
]

FOLDER = "resume"
FORMAT = 1


class Position(NamedTuple):
    """Where a run is; later positions are greater.

    Attributes:
        epoch: epochs that are finished.
        batch: batches of the next one that are done.
    """

    epoch: int
    batch: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.batch} batches of the next" if self.batch else "")


class StoredState(NamedTuple):
    """A state that was read, and where it is from."""

    position: Position
    path: Path
    content: dict[str, Any]


def states_in(run: str | Path) -> list[tuple[Position, Path]]:
    """The states of a run, the latest first, whether they are whole or not."""
    paths = (Path(run) / FOLDER).glob("epoch_*_batch_*.pt")
    found = [(re.fullmatch(r"epoch_(\d+)_batch_(\d+)", path.stem), path) for path in paths]
    return sorted(((Position(int(m[1]), int(m[2])), path) for m, path in found if m), reverse=True)


class StateWriter:
    """Writes a run's states without making the run wait for the disk; to be entered, and left before others may write.

    A state is in its place when :meth:`write` returns, and outlives a kill of the process. Meanwhile a thread waits
    until the disk has it, which a power cut would ask for, and only then removes older ones.

    Args:
        run: the run's folder.
        keep: number of the latest states that are kept, at least one.
    """

    def __init__(self, run: str | Path, keep: int):
        self.run, self.keep = Path(run), max(1, keep)
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.settle()

    def write(self, position: Position, content: dict[str, Any]) -> Path:
        """Write a state; returns its file.

        Raises:
            OSError: it, or the one before it, cannot be written; older ones are still there.
        """
        self.settle()
        path = self.run / FOLDER / f"epoch_{position.epoch:04}_batch_{position.batch:05}.pt"
        save_tensors({"format": FORMAT, **content}, path, is_synced=False)
        self._thread = threading.Thread(target=self._secure, args=(path,), name="state")
        self._thread.start()
        return path

    def settle(self) -> None:
        """Wait until the disk has the latest state.

        Raises:
            OSError: the disk did not take it, and it is gone; the states before it are still there.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _secure(self, path: Path) -> None:
        try:
            sync_file(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            said = f"{error.strerror}; what was saved before is still there"
            self._error = OSError(error.errno, said, str(path))
            return
        try:
            for _, old in states_in(self.run)[self.keep :]:
                old.unlink(missing_ok=True)
        except OSError as error:
            self._error = error


def newest_state(runs: Iterable[str | Path]) -> StoredState | None:
    """The latest whole state in any of these run folders; each that is damaged is named and passed over.

    Raises:
        ValueError: it was written by newer code.
    """
    for position, path in sorted((found for run in runs for found in states_in(run)), reverse=True):
        damage = damage_of(path)
        if damage is None:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["format"] > FORMAT:
                raise ValueError(f'"{path}" has format {content["format"]}, this code reads up to {FORMAT}; update it')
            return StoredState(position, path, content)
        print(f'"{path}" is damaged ({damage}); taking the one before it')
    return None


def drop_states(run: str | Path) -> None:
    """Remove what a finished run no longer needs."""
    if not is_first():
        return
    shutil.rmtree(Path(run) / FOLDER, ignore_errors=True)


def rng_state() -> dict[str, Any]:
    """States of ``random``, ``numpy.random``, torch and its GPUs, as what ``weights_only=True`` reads.

    A process among several has one GPU, and knows of no other.

    The bundled Dassl has its own; an installed one has none.
    """
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - data sets and transforms draw from it
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    cuda = []
    if torch.cuda.is_initialized():
        cuda = torch.cuda.get_rng_state_all() if world() == 1 else [torch.cuda.get_rng_state()]
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Bring the generators back to what :func:`rng_state` gave; GPUs where there are as many as there were."""
    random.setstate(state["python"])
    numpy = {**state["numpy"], "state": dict(state["numpy"]["state"])}
    numpy["state"]["key"] = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and world() > 1:
        torch.cuda.set_rng_state(state["cuda"][0])
    elif state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
