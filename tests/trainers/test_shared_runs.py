"""Runs of two processes leave what runs of one leave: weights to 1e-6, the same answers, one of each file."""

import json
import sys
from pathlib import Path

import colours
import numpy as np
import pytest
import tiny
import torch
from stopping import METHODS

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import together  # noqa: E402

from trainers.capt.run.distributed import rank, world  # noqa: E402

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

    def run_one(name, where, number, *options, change=lambda trainer: None):
        folder = tmp_path / where
        keys = (teacher if name == "PromptKD" else {}) | (METHODS[name] or {})
        features = ("TRAINER.CAPT.CACHE.DIR", str(folder / "features"))  # encoded by every run for itself
        options = [*UNEVEN, "DATASET.ROOT", str(tmp_path), *features, *options]

        def work():
            trainer = colours.build(folder, path, name, keys, options)
            change(trainer)
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


def test_scaled_gradients_are_summed_before_they_are_looked_at(run, tmp_path):
    """Mixed precision on a GPU: a share whose gradients overflow must have every process leave out the step."""

    def scale(trainer):
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=100)
        compute = trainer.compute_loss

        def overflowing(images, labels):
            loss, figures = compute(images, labels)
            is_second = (trainer.epoch, trainer.batch_idx) == (1, 0) and (world() == 1 or rank() == 1)
            return loss * (torch.inf if is_second else 1), figures

        trainer.compute_loss = overflowing

    run("MaPLe", "one", 1, change=scale)
    run("MaPLe", "two", 2, change=scale)
    one, two = (weights(tmp_path / where / "out") for where in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    assert all(torch.isfinite(value).all() for value in two.values())
