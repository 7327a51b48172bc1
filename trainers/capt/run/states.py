"""States of an unfinished run, one file each: where it is, what was trained, and whatever the next step depends on.

They lie in ``<run>/resume/``, apart from the family's checkpoints, and are small: frozen weights are built again from
the backbone. A file is a plain ``torch.save`` archive, read with ``weights_only=True``; the CRC-32 that it holds of
each part tells whether it is whole.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .distributed import is_first, world
from .files import damage_of, save_tensors

__all__ = [
    "Position",
    "StoredState",
    "drop_states",
    "newest_state",
    "rng_state",
    "set_rng_state",
    "states_in",
    "write_state",
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


def write_state(run: str | Path, position: Position, content: dict[str, Any], keep: int) -> Path:
    """Write a state, and remove all but the ``keep`` latest ones once it is safely there.

    Raises:
        OSError: it cannot be written; the states before it are still there.
    """
    path = Path(run) / FOLDER / f"epoch_{position.epoch:04}_batch_{position.batch:05}.pt"
    save_tensors({"format": FORMAT, **content}, path)
    for _, old in states_in(run)[max(1, keep) :]:
        old.unlink(missing_ok=True)
    return path


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
