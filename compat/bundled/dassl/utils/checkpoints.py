"""Checkpoint files: written whole or not at all, read without running code."""

import os
import os.path as osp
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import restricted_pickle
from .atomic import atomic_path
from .tools import mkdir_if_missing

__all__ = ["load_checkpoint", "resume_from_checkpoint", "save_checkpoint", "strip_module"]

POINTER = "checkpoint"
BEST = "model-best.pth.tar"


def strip_module(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Return a state dict without the ``module.`` that DataParallel puts in front of each key."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write a checkpoint and the pointer file that names it.

    Both are written beside their place, synced and renamed, so a killed process leaves the older files intact.

    Args:
        state: Dict with at least ``state_dict`` and ``epoch``; its ``state_dict`` is replaced by the stripped one.
        save_dir: Folder, made if missing.
        is_best: Also copy the file to ``model-best.pth.tar``.
        remove_module_from_keys: Strip ``module.`` from the keys.
        model_name: File name; default ``model.pth.tar-<epoch>``.
    """
    mkdir_if_missing(save_dir)
    if remove_module_from_keys:
        state["state_dict"] = strip_module(state["state_dict"])
    fpath = osp.join(save_dir, model_name or f"model.pth.tar-{state['epoch']}")
    with atomic_path(fpath) as part, open(part, "wb") as f:  # from a path, torch takes a name for what is inside
        torch.save(state, f)
    print(f"Checkpoint saved to {fpath}")
    with atomic_path(osp.join(save_dir, POINTER)) as part, open(part, "w", encoding="utf-8") as f:
        f.write(f"{osp.basename(fpath)}\n")
    if is_best:
        best = osp.join(save_dir, BEST)
        with atomic_path(best) as part:
            shutil.copy(fpath, part)
        print(f'Best checkpoint saved to "{best}"')


def load_checkpoint(fpath: str | None) -> dict[str, Any]:
    """Read a checkpoint file.

    Files that ``torch.load(weights_only=True)`` reads are read so. Older ones hold pickled scheduler objects; they go
    through ``restricted_pickle``, which builds nothing but containers, tensors and inert stand-ins.

    Args:
        fpath: File. Tensors go to the device they were saved from if CUDA is available, else to the CPU.

    Raises:
        ValueError: ``fpath`` is None.
        FileNotFoundError: There is no such file.
        pickle.UnpicklingError: The file is damaged (the CRC-32 of its parts tells), or needs a class that is not on the
            list.
    """
    if fpath is None:
        raise ValueError("File path is None")
    if not osp.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    map_location = None if torch.cuda.is_available() else "cpu"
    try:
        return _load(fpath, map_location)
    except Exception:
        print(f'Unable to load checkpoint from "{fpath}"')
        raise


def _load(fpath: str, map_location: str | None) -> Any:
    _check_parts(fpath)
    if _is_torchscript(fpath):  # torch.load would hand it to torch.jit.load
        raise pickle.UnpicklingError(
            f'"{fpath}" is a TorchScript archive, not a checkpoint; load it with torch.jit.load'
        )
    try:
        return torch.load(fpath, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        return _load_restricted(fpath, map_location)
    except (RuntimeError, EOFError) as error:
        raise _damaged(fpath, error) from error


def _check_parts(fpath: str) -> None:
    """Compare each part of a zip archive with its CRC-32, which torch.load does not; older formats have none."""
    with open(fpath, "rb") as f:
        if f.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(fpath) as archive:
            part = archive.testzip()
    except Exception as error:  # zipfile raises half a dozen types for a damaged file
        raise _damaged(fpath, error) from error
    if part is not None:
        raise _damaged(fpath, f"the checksum of {part} does not fit")


def _damaged(fpath: str, reason: object) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(
        f'"{fpath}" is damaged ({reason}); delete it and use an older checkpoint of the folder'
    )


def _load_restricted(fpath: str, map_location: str | None) -> Any:
    """Read a file that holds more than plain data."""
    module = restricted_pickle.pickle_module
    try:
        return torch.load(fpath, map_location=map_location, weights_only=False, pickle_module=module)
    except restricted_pickle.ForbiddenGlobalError as error:
        raise pickle.UnpicklingError(
            f'"{fpath}" needs {error} to be loaded, which is not a known part of a checkpoint; if you trust the file, '
            "convert it once with torch.load(..., weights_only=False) and torch.save of its state_dict"
        ) from None


def _is_torchscript(fpath: str) -> bool:
    if not zipfile.is_zipfile(fpath):
        return False
    with zipfile.ZipFile(fpath) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def current_checkpoint(fdir: str) -> str:
    """Return the path of the checkpoint that the folder's pointer file names.

    Without a pointer (the process was killed between the two writes) the file of the latest epoch is taken, and said.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
    """
    pointer = osp.join(fdir, POINTER)
    if osp.exists(pointer):
        with open(pointer, encoding="utf-8") as f:
            return osp.join(fdir, f.readline().strip())
    found = saved_epochs(fdir)
    if not found:
        raise FileNotFoundError(f'No checkpoint in "{fdir}"; delete the folder to train from scratch')
    latest = osp.join(fdir, f"model.pth.tar-{max(found)}")
    print(f'No file "{pointer}", taking the latest epoch: {latest}')
    return latest


def saved_epochs(fdir: str) -> list[int]:
    """Return the epochs whose files are in the folder."""
    names = os.listdir(fdir) if osp.isdir(fdir) else []
    return [int(match[1]) for match in (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in names) if match]


def resume_from_checkpoint(
    fdir: str, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Bring model, optimiser and scheduler to where the checkpoint of a folder left them.

    Args:
        fdir: Folder with the pointer file.
        model: Module; every key must match.
        optimizer: Its state is loaded when given.
        scheduler: It stays the one the configuration built and is moved to the epoch, so a changed schedule (say, a
            larger MAX_EPOCH) takes effect and the warm-up wrapper's successor keeps driving the live optimiser.

    Returns:
        The number of epochs finished.
    """
    return resume_from_state(read_for_resume(fdir), model, optimizer, scheduler)


def read_for_resume(fdir: str) -> dict[str, Any]:
    """Load the folder's current checkpoint, saying so."""
    fpath = current_checkpoint(fdir)
    print(f'Loading checkpoint from "{fpath}"')
    return load_checkpoint(fpath)


def resume_from_state(
    checkpoint: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> int:
    """Do what ``resume_from_checkpoint`` does with a checkpoint that is loaded already."""
    from ..optim.lr_scheduler import restore_scheduler

    model.load_state_dict(checkpoint["state_dict"])
    print("Loaded model weights")
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        print("Loaded optimizer")
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        restore_scheduler(scheduler, checkpoint["scheduler"])
        print("Loaded scheduler")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]
