"""Encoded images as files beside the data: safetensors, there whole or not at all, checked when they are read.

A file's name is the digest of all that its numbers depend on (:mod:`.encoding` makes it), so nothing is ever out of
date: another CLIP, transform or list of images looks for another file. Many processes may share a folder; none locks
it, and whoever writes a file that is already there writes the same numbers.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from yacs.config import CfgNode

from .files import write_atomically

__all__ = ["FOLDER", "OUTPUT_VARIABLE", "FeatureFiles", "feature_files"]

FOLDER = ".capt/features"  # hidden, so that no data set takes it for a class
OUTPUT_VARIABLE = "CAPT_FEATURES"  # set by the scripts: a folder for where the data may not be written to
SUFFIX = ".safetensors"


class FeatureFiles:
    """Files of tensors by name, in the first of some folders that has them.

    Args:
        folders: read in this order; new files go into the first that can be written to.
        max_gigabytes: what the files of the written folder may take together; those that were not used for longest go.
        root: the data's; image paths count from here.
        dataset: whose images they are of; its name is the folder of new files.
    """

    def __init__(self, folders: Sequence[Path], max_gigabytes: float, root: str, dataset: str = ""):
        self.folders = list(folders)
        self.max_bytes = int(max_gigabytes * 2**30)
        self.root = root
        self.dataset = dataset
        self.writable = next((folder for folder in self.folders if _can_write(folder)), None)
        self._has_complained = False

    def find(self, name: str) -> Path | None:
        """The file of that name, if there is one."""
        return next(
            (path for folder in self.folders if (path := folder / self.dataset / f"{name}{SUFFIX}").is_file()), None
        )

    def read(self, name: str) -> dict[str, Tensor] | None:
        """The tensors ``(n, ...)`` of a file; None where there is none, or where it is damaged, which is said."""
        path = self.find(name)
        if path is None:
            return None
        problem = "its checksum is another"
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
                is_whole = (file.metadata() or {}).get("crc32") == _checksum(tensors)
        except (OSError, SafetensorError) as error:
            is_whole, problem = False, str(error)
        with contextlib.suppress(OSError):  # a folder that others own
            if is_whole:
                os.utime(path)  # it was used
            else:
                path.unlink()
        if is_whole:
            return tensors
        print(f"{path} is damaged ({problem}); its images are encoded anew")
        return None

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors ``(n, ...)``; where the disk refuses, say so once and store nothing more."""
        if self.writable is None:
            self._complain(f"{self.folders[0]} cannot be written to; give TRAINER.CAPT.CACHE.DIR another folder")
            return
        tensors = {key: value.contiguous().cpu() for key, value in sorted(tensors.items())}
        path = self.writable / self.dataset / f"{name}{SUFFIX}"
        try:
            self._make_room(sum(value.nbytes for value in tensors.values()))
            about = {"crc32": _checksum(tensors)}
            write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=about))
        except (OSError, SafetensorError) as error:
            self._complain(str(error))

    def _complain(self, reason: str) -> None:
        self.writable = None
        if not self._has_complained:
            print(f"Image features are not stored: {reason}")
        self._has_complained = True

    def _make_room(self, num_bytes: int) -> None:
        """Delete what was not used for longest until ``num_bytes`` more are within the bound."""
        assert self.writable is not None, "nothing can be written"
        files = []
        for path in self.writable.rglob(f"*{SUFFIX}"):
            try:
                about = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            files.append((about.st_mtime, about.st_size, path))
        total = num_bytes + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def feature_files(cfg: CfgNode) -> FeatureFiles | None:
    """The files that a run's configuration asks for; None where it is switched off.

    They lie in ``CACHE.DIR`` or else in ``.capt/features`` beside the data sets. Where the data cannot be written to,
    they go where the scripts say, below their output folder.
    """
    node = cfg.TRAINER.get("CAPT", {}).get("CACHE", {})
    gigabytes = node.get("DISK_GB", 0)
    if gigabytes <= 0:
        return None
    root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
    elsewhere = os.environ.get(OUTPUT_VARIABLE)
    folders = [Path(root, FOLDER), *([Path(elsewhere)] if elsewhere else [])]
    if node.DIR:
        folders = [Path(node.DIR).expanduser()]
    return FeatureFiles(folders, gigabytes, root, cfg.DATASET.NAME)


def _can_write(folder: Path) -> bool:
    """Whether files may go into a folder, or one be made; what nobody may write to is kept even from root."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return bool(there.stat().st_mode & 0o222) and os.access(there, os.W_OK | os.X_OK)


def _checksum(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for key, value in sorted(tensors.items()):
        crc = zlib.crc32(f"{key} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
