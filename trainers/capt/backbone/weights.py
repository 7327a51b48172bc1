"""Tensors out of files: torch's own, safetensors, TorchScript archives, files in parts. Nothing is unpickled."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["keep_weights", "read_json", "read_weights"]

# What a checkpoint of open_clip's training holds; which model it is of stands nowhere in it.
OPEN_CLIP_TRAINING = {"epoch", "name", "state_dict", "optimizer"}


def read_weights(path: str, model_is_known: bool = False) -> dict[str, Tensor]:
    """All tensors ``(..., n)`` of a file by name, on the CPU; ``module.`` in front and ``state_dict`` around are gone.

    Args:
        path: ``.safetensors``, OpenAI's TorchScript archive, what ``torch.save`` wrote of tensors, or the
            ``.index.json`` of files in several parts.
        model_is_known: take a checkpoint of open_clip's training as well, since its model is named elsewhere.

    Raises:
        ValueError: the file is damaged, cut or holds something else.
    """
    if not _is_keeping:
        return _weights(path, model_is_known)
    key = path, _changed(path), model_is_known
    if key not in _kept:
        if len(_kept) > 1:  # a student's and its teacher's
            _kept.clear()
        _kept[key] = _weights(path, model_is_known)
    return {name: value.clone() for name, value in _kept[key].items()}  # a tower takes what it is given


# Weights and not models: what a model draws while it is built, the runs behind it must find drawn.
_kept: dict[tuple[str, int, bool], dict[str, Tensor]] = {}
_is_keeping = False


def keep_weights() -> None:
    """Take weights that were read before instead of reading their file again: for a process that does many runs."""
    global _is_keeping
    _is_keeping = True


def _changed(path: str) -> int:
    """When the file was changed, in ns; what is not there is for the reader to tell."""
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0


def _weights(path: str, model_is_known: bool) -> dict[str, Tensor]:
    if path.endswith(".index.json"):
        return _read_parts(path)
    try:
        content = _read(path)
    except Exception as error:  # torch raises half a dozen types for a damaged or foreign file
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'"{path}" cannot be read as CLIP weights ({first_line}); is the file complete?') from error
    if isinstance(content, dict) and content.keys() >= OPEN_CLIP_TRAINING and not model_is_known:
        raise ValueError(
            f'"{path}" is a checkpoint of open_clip\'s training, which does not say of what model; '
            f"name it as open_clip:MODEL/{path}, with open_clip's name of the model"
        )
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f'"{path}" holds no state dict of tensors, so it is no CLIP in OpenAI\'s layout')
    return {key.removeprefix("module."): value for key, value in content.items()}


def _read(path: str) -> Any:
    if path.endswith(".safetensors"):
        return load_file(path)
    if _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit.load is deprecated; OpenAI's files need it
            warnings.simplefilter("ignore", DeprecationWarning)
            _refuse_code_at_load(path)
            return torch.jit.load(path, map_location="cpu").state_dict()
    return torch.load(path, map_location="cpu", weights_only=True)


def _refuse_code_at_load(path: str) -> None:
    """Refuse an archive with methods that torch runs while it reads the file; no CLIP has any."""
    with zipfile.ZipFile(path) as archive:
        sources = [archive.read(entry) for entry in archive.infolist() if entry.filename.endswith(".py")]
    if any(b"__setstate__" in source for source in sources):
        raise ValueError("it runs code of its own when it is read")


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in entry for entry in archive.namelist())


def _read_parts(path: str) -> dict[str, Tensor]:
    """The tensors of all files that an ``.index.json`` names; they lie beside it."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or any(os.path.basename(str(name)) != name for name in names.values()):
        raise ValueError(f'"{path}" lists no files beside it under "weight_map"; copy it again')
    state: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        part = os.path.join(os.path.dirname(path), name)
        if not os.path.isfile(part):
            raise ValueError(f'"{path}" lists "{name}", which is not beside it; copy all parts')
        state |= _weights(part, False)
    return state


def read_json(path: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is damaged, or holds no object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise ValueError(f'"{path}" cannot be read as JSON ({error}); is the file complete?') from error
    if not isinstance(content, dict):
        raise ValueError(f'"{path}" holds no JSON object; is it the right file?')
    return content
