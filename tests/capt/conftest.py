"""The small CLIP as a file, and base models on it."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tiny_capt.py, also where pytest does not put it

import tiny_capt  # noqa: E402


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("small_clip") / "clip.pt"
    torch.save(tiny_capt.clip_state(), path)
    return path


@pytest.fixture
def base(small_clip):
    return tiny_capt.make_base(small_clip)


@pytest.fixture
def bank(base):
    return tiny_capt.make_bank(base)
