"""What a run folder keeps so that it can be served anywhere: the template, the prompt files, the pairs' features.

Beside the checkpoints, in ``<run>/capt/``:

- ``serving.json``: the base model's template and the class names;
- ``prompts/``: copies of the prompt files that the run found;
- ``pair_features.safetensors``: the encoded prompts of the pairs that the run met, so that a test and
  :func:`capt.load` need not encode them again.
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
MAX_FEATURE_BYTES = 64 * 2**20  # 16,000 pairs of ViT-B/16; what more was met is encoded anew when it is met again


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
    run: str | Path,
    classnames: Sequence[str],
    made_of: dict[str, str],
    pairs: Tensor,
    difference: Tensor,
    commonality: Tensor,
) -> None:
    """Store the encoded prompts of the pairs that were met.

    Args:
        run: the run folder.
        classnames: C names.
        made_of: digests of the base model that made them, and of the sentences.
        pairs: ``(R, 2)`` int64, t and j.
        difference: ``(R, D)`` D[t|j].
        commonality: ``(R, D)`` K[t, j].
    """
    tensors = {"pairs": pairs, "difference": difference, "commonality": commonality}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"met_pairs": json.dumps({"classnames": list(classnames), **made_of})}
    path = Path(run) / FOLDER / PAIR_FEATURES
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_pair_features(
    run: str | Path, made_of: dict[str, str], device: torch.device | str = "cpu"
) -> tuple[list[str], tuple[Tensor, Tensor, Tensor]] | None:
    """Class names, and pairs ``(R, 2)`` with difference and commonality ``(R, D)`` that were stored of them.

    None where nothing is stored, or it was made of something else; or by an earlier version, which stored the features
    of all pairs: what is needed of them is soon made anew.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(run) / FOLDER / PAIR_FEATURES
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if "met_pairs" not in metadata and "pair_features" in metadata:
                return None
            about = json.loads(metadata["met_pairs"])
            classnames = about.pop("classnames")
            if about != made_of:
                return None
            pairs, *features = (file.get_tensor(name) for name in ("pairs", "difference", "commonality"))
            if len(pairs) and not 0 <= int(pairs.min()) <= int(pairs.max()) < len(classnames):
                raise ValueError("its pairs are none of its classes")
            return classnames, (pairs, features[0], features[1])
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f'"{path}" is damaged ({error}); delete it, it is made anew') from error
