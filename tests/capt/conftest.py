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


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """``made(layout)``: the model of a layout, made once; needs what the extra ``test`` brings."""
    pytest.importorskip("transformers", reason="the extra `test` brings transformers")
    pytest.importorskip("open_clip", reason="the extra `test` brings open_clip")
    from layouts import MAKERS

    kept = {}

    def make(layout):
        if layout not in kept:
            kept[layout] = MAKERS[layout](tmp_path_factory.mktemp("layout"))
        return kept[layout]

    return make
