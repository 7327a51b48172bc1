"""Runs of two processes leave what runs of one leave: weights to 1e-6, the same answers, one of each file."""

import json
import sys
from pathlib import Path

import colours
import numpy as np
import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import together  # noqa: E402

DEEP = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2}
METHODS = {
    "CoOp": {"N_CTX": 4},
    "CoCoOp": {"CTX_INIT": "a photo of a"},
    "MaPLe": {"PROMPT_DEPTH": 2},
    "IVLP": DEEP,
    "VPT": {"N_CTX_VISION": 2},
    "PromptSRC": DEEP,
    "PromptKD": {"PROMPT_DEPTH_VISION": 2},
    "LinearProbe": None,
    "CLIPAdapter": None,
    "TipAdapter": None,
    "TipAdapterF": None,
}
# Five images in a batch: three and two. Test batches of five: three turns. A batch is augmented image by image.
UNEVEN = ["DATALOADER.TRAIN_X.BATCH_SIZE", 5, "DATALOADER.TEST.BATCH_SIZE", 5, "OPTIM.LR", 0.01]
UNEVEN += ["INPUT.TRANSFORMS", ("random_flip", "random_resized_crop", "normalize"), "TRAINER.MODAL", "cross"]


@pytest.fixture(scope="session")
def clip(clip_path):
    """The small CLIP's file, and the keys that name PromptKD's teacher."""
    return clip_path, tiny.save_teacher(clip_path.parent / "teacher")


@pytest.fixture
def run(tmp_path, clip):
    """``run(name, where, number, options)``: train in so many processes, into ``<tmp_path>/<where>/out``."""
    path, teacher = clip

    def run_one(name, where, number, *options):
        folder = tmp_path / where
        keys = (teacher if name == "PromptKD" else {}) | (METHODS[name] or {})
        features = ("TRAINER.CAPT.CACHE.DIR", str(folder / "features"))  # encoded by every run for itself
        options = [*UNEVEN, "DATASET.ROOT", str(tmp_path), *features, *options]

        def work():
            trainer = colours.build(folder, path, name, keys, options)
            trainer.train()
            return trainer.best_result

        return together(number, work, folder)

    return run_one


def weights(out):
    (path,) = out.glob("*/model.pth.tar-3")
    return torch.load(path, weights_only=True)["state_dict"]


def record(out):
    found = json.loads((out / "results.json").read_text())
    for key in ("seconds", "images_per_second_test", "num_encoded_before", "peak_memory_mb"):
        del found[key]
    del found["config"]["OUTPUT_DIR"], found["config"]["TRAINER"]["CAPT"]["CACHE"]["DIR"]
    return found


def files(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and "tfevents" not in p.name)


def assert_alike(one, other, number):
    """What ``number`` processes have left in ``other`` is what one has left in ``one``."""
    assert files(one) == files(other)
    assert len(list(other.rglob("*tfevents*"))) == 1
    torch.testing.assert_close(weights(other), weights(one), rtol=0, atol=1e-6)
    a, b = (np.load(out / "predictions.npz") for out in (one, other))
    for name in ("labels", "predictions", "impaths"):
        assert (a[name] == b[name]).all(), name
    np.testing.assert_allclose(a["probs"], b["probs"], atol=1e-5)
    expected = record(one) | {"processes": number}
    assert record(other) == expected


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_leave_what_one_leaves(name, run, tmp_path):
    run(name, "one", 1)
    run(name, "two", 2)
    assert_alike(tmp_path / "one/out", tmp_path / "two/out", 2)
    assert "accuracy" in (tmp_path / "two/printed0").read_text()
