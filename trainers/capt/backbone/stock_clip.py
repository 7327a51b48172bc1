"""The one place that imports the ``clip`` package: OpenAI's, a vendored folder, or a fork of it.

The distributions of OpenAI CLIP on the package index start with ``from pkg_resources import packaging``, a module
that current setuptools no longer ships. They need nothing of it but ``packaging``, so a stand-in with that one name is
put in place for the time of the import and removed again.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import tempfile
import types
from typing import TYPE_CHECKING

import torch

from .activation import lighten

if TYPE_CHECKING:
    from clip.model import CLIP, ModifiedResNet

__all__ = ["build_clip", "build_resnet", "clip", "tokenizer"]


def _has_pkg_resources() -> bool:
    """Whether the real one is there, or somebody's module of that name, which need not have a spec."""
    if "pkg_resources" in sys.modules:
        return True
    spec = importlib.util.find_spec("pkg_resources")
    return spec is not None and spec.origin is not None  # the bridge's stand-in lies in no file


def _import_clip() -> types.ModuleType:
    if _has_pkg_resources():
        return importlib.import_module("clip")
    stand_in = types.ModuleType("pkg_resources")
    vars(stand_in).update(packaging=importlib.import_module("packaging"))
    importlib.import_module("packaging.version")
    sys.modules["pkg_resources"] = stand_in
    try:
        return importlib.import_module("clip")
    finally:
        sys.modules.pop("pkg_resources", None)


try:
    clip = _import_clip()
    _clip_py = importlib.import_module("clip.clip")  # a package may hide it behind the function names it re-exports
    _model_py = importlib.import_module("clip.model")
    _made = getattr(_clip_py, "_tokenizer", None)  # by every CLIP that is known, for itself
    tokenizer = _made or importlib.import_module("clip.simple_tokenizer").SimpleTokenizer()
except ImportError as error:  # name the fix, not only the module
    raise ImportError(
        f"OpenAI's clip package cannot be imported ({error}); run `pip install clip-anytorch`, "
        "or start from a folder that holds a copy of CLIP's clip/ folder"
    ) from error


def model_urls() -> dict[str, str]:
    """Names of OpenAI's models and where their package downloads them from."""
    return dict(_clip_py._MODELS)


def download(name: str, folder: str) -> str:
    """Path of OpenAI's weights ``name`` in ``folder``, downloaded and checksummed by the clip package if absent.

    The file appears whole: another run that starts at the same time never reads half of it.
    """
    url = model_urls()[name]
    path = os.path.join(folder, os.path.basename(url))
    if os.path.exists(path):
        return _clip_py._download(url, folder)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        os.replace(_clip_py._download(url, scratch), path)
    return path


def build_clip(state_dict: dict[str, torch.Tensor]) -> CLIP:
    """Stock CLIP from a state dict; sizes are inferred from the weights by the package itself.

    The forks of MaPLe, PromptSRC and PromptKD want a ``design_details`` dict; zero prompts give the stock model.
    """
    state_dict = dict(state_dict)  # build_model deletes keys
    if "design_details" in inspect.signature(_model_py.build_model).parameters:
        plain = {"trainer": "CoOp", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
        model = _model_py.build_model(state_dict, plain)
    else:
        model = _model_py.build_model(state_dict)
    lighten(model, getattr(_model_py, "QuickGELU", None))
    return model


def build_resnet(
    layers: tuple[int, ...], output_dim: int, heads: int, input_resolution: int, width: int
) -> ModifiedResNet:
    """The package's ResNet, without weights."""
    return _model_py.ModifiedResNet(layers, output_dim, heads, input_resolution, width)
