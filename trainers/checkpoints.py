"""Load what a run of CoOp's family saved, whichever repository wrote it; one clear line where that cannot be done."""

from __future__ import annotations

import os
import re

from torch import Tensor, nn

from .capt.run.files import read_checkpoint

__all__ = ["checkpoint_path", "load_weights", "need_directory"]

# Embeddings of the class names a run was trained on; the run at hand has its own.
CLASS_TOKENS = ("token_prefix", "token_suffix")


def need_directory(directory: str, name: str, method: str) -> None:
    """Refuse to load the model ``name`` from no folder at all.

    Raises:
        FileNotFoundError: ``directory`` is empty.
    """
    if not directory:
        raise FileNotFoundError(
            f'Model not found at "{name}/": no folder is given; '
            f"name the output folder of a {method} run with --model-dir"
        )


def checkpoint_path(directory: str, name: str, epoch: int | None) -> str:
    """Path of the checkpoint of model ``name``: of one epoch, or the best one if ``epoch`` is None.

    Raises:
        FileNotFoundError: it is not there; the message lists the epochs that are.
    """
    file_name = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
    path = os.path.join(directory, name, file_name)
    if os.path.isfile(path):
        return path
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f'Model not found at "{path}"; give the output folder of a run, which holds a folder "{name}"'
        )
    found = sorted(int(m[1]) for f in os.listdir(folder) if (m := re.fullmatch(r"model\.pth\.tar-(\d+)", f)))
    hint = f"give --load-epoch {found[-1]}" if found else "train first"
    raise FileNotFoundError(f'Model not found at "{path}"; epochs there: {found or "none"}; {hint}')


def load_weights(model: nn.Module, path: str) -> int:
    """Copy a checkpoint's weights into ``model`` and return its epoch.

    Frozen weights may be missing (the backbone has them); everything that is trained must be there.

    Raises:
        ValueError: keys or shapes do not fit this run; the message names the first.
    """
    checkpoint = read_checkpoint(path)
    state_dict = {
        key: value for key, value in checkpoint["state_dict"].items() if key.rpartition(".")[2] not in CLASS_TOKENS
    }
    _check_fit(model, state_dict, path)
    model.load_state_dict(state_dict, strict=False)
    return checkpoint.get("epoch", 0)


def _check_fit(model: nn.Module, state_dict: dict[str, Tensor], path: str) -> None:
    own = model.state_dict()
    cause = "was it trained by another method, or with another backbone, context length or prompt depth?"
    unknown = [key for key in state_dict if key not in own]
    if unknown:
        raise ValueError(f'"{path}" holds {_some(unknown)}, unknown to this run; {cause}')
    missing = [key for key, value in model.named_parameters() if value.requires_grad and key not in state_dict]
    if missing:
        raise ValueError(f'"{path}" lacks {_some(missing)}; {cause}')
    for key, value in state_dict.items():
        if value.shape != own[key].shape:
            theirs, ours = tuple(value.shape), tuple(own[key].shape)
            raise ValueError(f'"{path}": {key} has shape {theirs}, this run needs {ours}; {cause}')


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more keys"
