"""What a run folder keeps so that it can be served anywhere: the template, the prompt files, the pairs' features.

Beside the checkpoints, in ``<run>/capt/``:

- ``serving.json``: the base model's template and the class names;
- ``prompts/``: copies of the prompt files that the run found;
- ``pair_features.safetensors``: the encoded pair prompts of the run's own classes, where they are small enough. They
  spare a load the encoding of every pair's sentences, minutes on a CPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import write_atomically, write_json

__all__ = ["Serving", "keep_pair_features", "keep_serving", "read_pair_features", "read_serving"]

FORMAT = 1
FOLDER = "capt"  # the folder of the checkpoints
PAIR_FEATURES = "pair_features.safetensors"
MAX_FEATURE_BYTES = 64 * 2**20  # 100 classes of ViT-B/16 take 41 MB; 1,000 would take 4 GB and are encoded anew


@dataclass(frozen=True)
class Serving:
    """What does not follow from a run's configuration.

    Attributes:
        template: the base model's prompt, with ``{}`` for the class name.
        classnames: the run's classes in the order of their labels.
        all_classnames: those of the whole data set, which FuDD's prompt files count by.
    """

    template: str
    classnames: list[str]
    all_classnames: list[str]


def keep_serving(run: str | Path, serving: Serving, prompt_files: Sequence[Path]) -> None:
    """Write the template and the class names, and copy the prompt files that the run found."""
    folder = Path(run) / FOLDER
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    for path in prompt_files:
        target = folder / "prompts" / path.name
        write_atomically(target, partial(shutil.copyfile, path))
    write_json(folder / "serving.json", {"format": FORMAT, **asdict(serving)})


def read_serving(run: str | Path) -> Serving | None:
    """What :func:`keep_serving` wrote; None in the folder of an older run.

    Raises:
        ValueError: the file is damaged or of a newer format.
    """
    path = Path(run) / FOLDER / "serving.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("format")
        if found > FORMAT:
            raise ValueError(f"format {found}, this code reads up to {FORMAT}; update it")
        return Serving(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'"{path}" cannot be read ({error}); copy the run folder again') from error


def prompts_folder(run: str | Path) -> Path:
    """Where :func:`keep_serving` puts the prompt files."""
    return Path(run) / FOLDER / "prompts"


def keep_pair_features(
    run: str | Path, classnames: Sequence[str], base_digest: str, difference: Tensor, commonality: Tensor
) -> bool:
    """Store the encoded prompts of all pairs; False where they would take more than 64 MB.

    Args:
        run: the run folder.
        classnames: C names.
        base_digest: whose text encoder made them.
        difference: ``(C, C, D)``, at [t, j] D[t|j].
        commonality: ``(C, C, D)``.
    """
    tensors = {"difference": difference, "commonality": commonality}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    if sum(value.nbytes for value in tensors.values()) > MAX_FEATURE_BYTES:
        return False
    metadata = {"pair_features": json.dumps({"classnames": list(classnames), "base": base_digest})}
    path = Path(run) / FOLDER / PAIR_FEATURES
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    return True


def read_pair_features(
    run: str | Path, classnames: Sequence[str], base_digest: str, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor] | None:
    """Both ``(C, C, D)`` that :func:`keep_pair_features` stored of just these classes and this base model, else None.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(run) / FOLDER / PAIR_FEATURES
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            about = json.loads((file.metadata() or {})["pair_features"])
            if about != {"classnames": list(classnames), "base": base_digest}:
                return None
            return file.get_tensor("difference"), file.get_tensor("commonality")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f'"{path}" is damaged ({error}); delete it, it is made anew') from error
