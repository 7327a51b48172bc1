"""Files that are either there whole or not at all, and safe reading of the family's checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .distributed import is_first

__all__ = [
    "checkpoint_file",
    "damage_of",
    "read_checkpoint",
    "relative_path",
    "save_tensors",
    "sync_file",
    "write_atomically",
    "write_json",
]


def write_atomically(path: str | os.PathLike[str], write: Callable[[str], Any], *, is_synced: bool = True) -> None:
    """Let ``write(temporary_path)`` write a file beside ``path``, then move it there; a kill leaves the old file.

    Of the processes of a run the first one alone writes.

    Args:
        path: file, in a folder that is made.
        write: makes the file whose path it is given.
        is_synced: whether the file is on the disk itself before it is moved, which a power cut asks for; a kill does
            not.

    Raises:
        OSError: it cannot be written, e.g. on a full disk, and names ``path``; the old file is still there.
    """
    if not is_first():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(temporary)
        if is_synced:
            sync_file(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; results are meant to be read by others
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        code = _system_error(error, temporary)
        if code is not None:
            raise OSError(code, f"{os.strerror(code)}; what was saved before is still there", str(path)) from error
        raise


def sync_file(path: str | os.PathLike[str]) -> None:
    """Wait until what was written to a file is on the disk itself.

    Raises:
        OSError: it cannot be written there, as some network disks say only now.
    """
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _system_error(error: BaseException | None, path: str) -> int | None:
    """The system's number for why ``path`` could not be written, where that is the reason.

    torch raises a RuntimeError of its own behind the system's error, safetensors one that only says its number.
    """
    while isinstance(error, Exception):
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno if error.filename in (None, path) else None
        said = re.search(r"\(os error (\d+)\)", str(error))
        if said:
            return int(said[1])
        error = error.__cause__ or error.__context__
    return None


def save_tensors(content: dict[str, Any], path: str | os.PathLike[str], *, is_synced: bool = True) -> None:
    """``torch.save``, as :func:`write_atomically`; equal contents are equal bytes, whatever the file is called."""

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:  # from a path, torch takes a name for what is inside
            torch.save(content, file)

    write_atomically(path, write, is_synced=is_synced)


def damage_of(path: str | os.PathLike[str]) -> str | None:
    """Why a file of ``torch.save`` is not what was written, by the CRC-32 that it holds of each part; None if it is.

    Files of torch before 1.6 hold none, and are taken as whole.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start != b"PK\x03\x04":
        return None if start and start[0] == 0x80 else "it is no archive of torch"  # 0x80: a pickle begins so
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if part is None else f"the checksum of {part} does not fit"


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def relative_path(path: str, root: str) -> str:
    """``path`` from ``root`` on where it lies below it, so that a record survives moving the data."""
    path = os.path.abspath(path)
    return os.path.relpath(path, root) if path.startswith(root + os.sep) else path


def checkpoint_file(directory: str, model_name: str, epoch: int | None = None) -> str:
    """The file that a Dassl trainer wrote for ``model_name``: of ``epoch``, else the best, else the last saved.

    A ``directory`` that is a file is taken as the checkpoint itself.

    The pointer file alone would not do: it names the last epoch even where the run deployed an earlier, better one.

    Raises:
        FileNotFoundError: names the path that was tried.
    """
    if Path(directory).is_file():
        return str(directory)
    folder = Path(directory) / model_name
    if epoch:
        path = folder / f"model.pth.tar-{epoch}"
    else:
        path, pointer = folder / "model-best.pth.tar", folder / "checkpoint"
        if not path.is_file() and pointer.is_file():
            path = folder / pointer.read_text(encoding="utf-8").strip()
    if not path.is_file():
        there = sorted(p.name for p in folder.glob("model*.pth.tar*") if p.suffix != ".safetensors")
        hint = (
            f"the folder holds {there}" if there else "it holds no checkpoint; train first, or give the folder of a run"
        )
        raise FileNotFoundError(f'No model at "{path}"; {hint}')
    return str(path)


def read_checkpoint(path: str) -> dict[str, Any]:
    """A Dassl checkpoint, read without running any code that the file may hold.

    Files of upstream Dassl pickle a scheduler object, which ``weights_only=True`` refuses. Such files are read with
    an unpickler that admits tensors and plain containers, and puts an inert object in the place of everything else.

    Raises:
        ValueError: the file is damaged or holds no ``state_dict``.
    """
    try:
        damage = damage_of(path)
        if damage is not None:
            raise ValueError(damage)
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            checkpoint = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_inert_pickle())
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises half a dozen types for a damaged file
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'"{path}" cannot be read as a checkpoint ({first_line}); is the file complete?') from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f'"{path}" is no Dassl checkpoint: it holds no state_dict')
    return checkpoint


class _Inert:
    """Stands where a checkpoint holds an object that is not needed, and swallows its state."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


_ADMITTED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}


def _inert_pickle() -> ModuleType:
    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            is_storage = module in ("torch", "torch.storage") and name.endswith("Storage")
            if (module, name) in _ADMITTED or is_storage:
                return super().find_class(module, name)
            return _Inert

    inert = ModuleType("inert_pickle")
    vars(inert).update(Unpickler=Unpickler, load=lambda file, **kwargs: Unpickler(file, **kwargs).load())
    return inert
