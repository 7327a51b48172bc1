"""Which runs share what a frozen tower made: over seeds, shots, halves and methods, as far as they see the same images.

A file is one view of one list of images, so test images and a seed's own shots are found again, and shots that others
drew are not. Data: four base and two new classes, of which a run sees as many training pictures as it has shots.
"""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import tiny_capt  # noqa: E402
from test_capt_end_to_end import CLASSES, _registered, build, files  # noqa: E402, F401

from trainers.capt.run import pictures  # noqa: E402

NUM_TRAIN, NUM_TEST, NUM_NEW = 16, 12, 6
PROBE = ("TRAINER.NAME", "LinearProbe", "TRAINER.LINEARPROBE.PREC", "fp32", "TRAINER.LINEARPROBE.AUGMENT_EPOCHS", 1)


@pytest.fixture
def run(files, tmp_path, seen):  # noqa: F811
    """``run(folder, options)``: train and test, or test alone; images encoded, and test images that were read."""
    tiny_capt.draw_pictures(tmp_path / "data", CLASSES, 9)

    def one(folder, *more, of=None):
        seen.clear()
        keys = ("DATASET.ROOT", str(tmp_path / "data"), "TRAINER.CAPT.MGDE.BETA", 0.0, "TRAINER.CAPT.SYS.ON", False)
        trainer = build(files, tmp_path / folder, *keys, *more)
        if of is not None:
            trainer.load_model(str(tmp_path / of), epoch=2)
        if of is not None or trainer.cfg.TRAINER.NAME == "ZeroshotCLIP":
            trainer.test()
        else:
            trainer.train()
        return sum(seen), json.loads((tmp_path / folder / "results.json").read_text())["num_encoded_before"]

    return one


def test_another_seed_encodes_its_augmented_shots_alone(run):
    """Of one draw: test images and plain shots of two views are there."""
    assert run("one") == (2 * NUM_TRAIN + NUM_TEST, 0)
    assert run("two", "SEED", 2) == (NUM_TRAIN, NUM_TEST)
    assert run("two_again", "SEED", 2) == (0, NUM_TEST)


def test_other_shots_encode_themselves_alone(run):
    run("four")
    assert run("two", "DATASET.NUM_SHOTS", 2) == (2 * 8, NUM_TEST)
    assert run("four_again") == (0, NUM_TEST)


def test_halves_share_what_they_both_see(run):
    """A half's test images are found by every seed, shot and method; the other half has other images."""
    new = ("DATASET.SUBSAMPLE_CLASSES", "new")
    run("base")
    assert run("new", *new, of="base") == (NUM_NEW, 0)
    run("base2", "SEED", 2, "DATASET.NUM_SHOTS", 1)
    assert run("new2", *new, "SEED", 2, "DATASET.NUM_SHOTS", 1, of="base2") == (0, NUM_NEW)
    for half, num in (("base", NUM_TEST), ("new", NUM_NEW)):
        assert run(f"zs_{half}", "DATASET.SUBSAMPLE_CLASSES", half, "TRAINER.NAME", "ZeroshotCLIP") == (0, num)
    assert run("probe", *PROBE) == (0, NUM_TEST)  # its plain and its one augmented view of the shots are CAPT's
    assert run("probe_new", *PROBE, *new, of="probe") == (0, NUM_NEW)


def test_the_switch_keeps_every_run_to_itself(run, tmp_path):
    off = ("TRAINER.CAPT.CACHE.DISK_GB", 0)
    assert run("one", *off) == run("two", *off) == (2 * NUM_TRAIN + NUM_TEST, 0)
    assert not (tmp_path / "data" / ".capt").exists()


@pytest.mark.parametrize(
    "more", [("TRAINER.CAPT.SYS.ON", True), ("TRAINER.CAPT.MGDE.BETA", 0.1), ("TRAINER.CAPT.BANK.VIEWS", 2)]
)
def test_a_run_decodes_each_image_once(run, monkeypatch, more):
    """For four views of a shot, and bank, shift, gain and all epochs behind them; and the test images."""
    reads, own = [], pictures.read_image
    monkeypatch.setattr(pictures, "read_image", lambda path, **how: reads.append(path) or own(path, **how))
    run("run", "TRAINER.CAPT.CACHE.DISK_GB", 0, "TRAINER.CAPT.CACHE.VIEWS", 4, *more)
    assert len(reads) == NUM_TRAIN + NUM_TEST
    assert len(set(reads)) == NUM_TRAIN + NUM_TEST
