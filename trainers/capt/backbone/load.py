"""A CLIP from a name or a file, whoever saved it: OpenAI, open_clip or the package transformers."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from . import open_clip_layout as open_clip
from . import stock_clip
from . import transformers_layout as transformers
from .weights import read_weights

if TYPE_CHECKING:
    from clip.model import CLIP

__all__ = ["load_clip"]

DOWNLOAD_FOLDER = os.path.expanduser("~/.cache/clip")  # where OpenAI's package and all of the family look


def load_clip(name: str) -> CLIP:
    """A CLIP in fp32 on the CPU, frozen and in eval mode, with the attributes of OpenAI's.

    Args:
        name: one of

            - OpenAI's names (``ViT-B/16``; downloaded by the clip package),
            - a file that holds OpenAI's TorchScript archive, or a state dict in OpenAI's layout,
            - a folder that transformers saved (``config.json``, ``model.safetensors``), or the weights in it,
            - ``transformers:ORGANISATION/NAME``, such a folder on the Hugging Face hub or in its cache,
            - a folder or file of open_clip's with ``open_clip_config.json`` beside it,
            - ``open_clip:MODEL/WEIGHTS``, with open_clip's name of the model, and a tag of its or a file.

    Raises:
        FileNotFoundError: neither a known name nor a file; the message lists the names.
        ValueError: the file is no CLIP in any of these layouts, or not a whole one.
        ConnectionError: the weights cannot be downloaded; the message says where to put the file by hand.
    """
    try:
        model = _load(name)
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f'"{name}": {error}') from error
    except (KeyError, RuntimeError, TypeError, AttributeError, ZeroDivisionError, AssertionError) as error:
        raise ValueError(f'"{name}" is not a complete CLIP: {_first_problem(error)}') from error
    return cast("CLIP", model.float().eval().requires_grad_(False))


def _load(name: str) -> nn.Module:
    if name.startswith(open_clip.PREFIX):
        return open_clip.load_named(name.removeprefix(open_clip.PREFIX))
    if name.startswith(transformers.PREFIX):
        return transformers.load_named(name.removeprefix(transformers.PREFIX))
    if os.path.isdir(name):
        return _load_folder(name)
    path = _weights_path(name)
    folder = os.path.dirname(path) or "."
    if os.path.isfile(os.path.join(folder, open_clip.CONFIG)) and os.path.basename(path) not in transformers.WEIGHTS:
        return open_clip.load_open_clip(folder, path)
    state = read_weights(path)
    if transformers.is_transformers(state):
        if not os.path.isfile(os.path.join(folder, transformers.CONFIG)):
            raise ValueError(
                f'"{name}" has the layout of transformers, whose heads and activation stand in {transformers.CONFIG}; '
                "put that file beside it"
            )
        return transformers.load_transformers(folder, path)
    if open_clip.says_nothing_of_itself(path, state):
        raise ValueError(
            f'"{name}" is open_clip\'s, whose heads and activation stand in {open_clip.CONFIG}; put that file beside '
            f"it, or name it as open_clip:MODEL/{name}, with open_clip's name of the model"
        )
    return _load_openai(name, state)


def _load_folder(folder: str) -> nn.Module:
    for config, weights, load in (
        (transformers.CONFIG, transformers.WEIGHTS, transformers.load_transformers),
        (open_clip.CONFIG, open_clip.WEIGHTS, open_clip.load_open_clip),
    ):
        found = [path for name in weights if os.path.isfile(path := os.path.join(folder, name))]
        if found and os.path.isfile(os.path.join(folder, config)):
            return load(folder, found[0])
    raise ValueError(
        f'the folder "{folder}" holds no CLIP: {transformers.CONFIG} with {transformers.WEIGHTS[0]} or '
        f"{transformers.WEIGHTS[2]}, or {open_clip.CONFIG} with {open_clip.WEIGHTS[0]} or {open_clip.WEIGHTS[-1]}"
    )


def _load_openai(name: str, state: dict[str, Tensor]) -> nn.Module:
    if "text_projection" not in state or not any(k.startswith("visual.") for k in state):
        raise ValueError(
            f'"{name}" holds no CLIP in OpenAI\'s layout (no text_projection or visual.* in {len(state)} keys), nor in '
            f"that of transformers or open_clip; give one of {sorted(stock_clip.model_urls())} or a file of one of them"
        )
    try:
        return stock_clip.build_clip(state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'"{name}" is not a complete CLIP in OpenAI\'s layout: {str(error).splitlines()[0]}'
        ) from error


def _weights_path(name: str) -> str:
    if os.path.isfile(name):
        return name
    names = sorted(stock_clip.model_urls())
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f' (do you mean "{near[0]}"?)' if near else ""
        if not near and name.count("/") == 1 and not name.startswith("/"):
            hint = f"; a model of the Hugging Face hub is named as {transformers.PREFIX}{name}"
        raise FileNotFoundError(f'MODEL.BACKBONE.NAME "{name}" is neither a file nor one of {names}{hint}')
    try:
        return stock_clip.download(name, DOWNLOAD_FOLDER)
    except (OSError, RuntimeError) as error:
        file_name = os.path.basename(stock_clip.model_urls()[name])
        raise ConnectionError(
            f'CLIP "{name}" cannot be downloaded ({error}); put {file_name} into {DOWNLOAD_FOLDER} '
            "or give its path as MODEL.BACKBONE.NAME"
        ) from error


def _first_problem(error: Exception) -> str:
    """What torch says first of keys or shapes that do not fit, or the error itself, in one line."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = lines[1] if lines[0].startswith("Error(s) in loading state_dict") and len(lines) > 1 else lines[0]
    return said if len(said) <= 300 else f"{said[:300]} ..."
