"""The small CLIP as a file, and trainers on it."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tiny.py, also where pytest does not put it

import tiny  # noqa: E402


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(tiny.clip_state(), path)
    return path


@pytest.fixture
def make_trainer(clip_path):
    """``make(name, keys of its node, ...)`` builds a trainer without a data set on the small CLIP."""

    def make(name, keys=None, **kwargs):
        return tiny.make_trainer(name, kwargs.pop("clip_path", clip_path), keys, **kwargs)

    return make


@pytest.fixture
def build(tmp_path, clip_path):
    """``build(name, where, *options)``: a trainer on a dozen pictures in ``<tmp_path>/<where>/out``."""
    import stopping  # it imports the trainers

    return stopping.builder(tmp_path, clip_path, tiny.save_teacher(clip_path.parent / "teacher"))
