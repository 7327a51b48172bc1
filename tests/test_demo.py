"""The demo, end to end by the real scripts: zero-shot CLIP and CAPT on Glyphs, base to new."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import datasets  # noqa: F401 - registers Glyphs
from datasets.glyphs import Glyphs
from trainers.capt import ConfusionBank

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of ZeroshotCLIP and CAPT, base and new, seed 1."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("OPTS", "EPOCHS", "BASE", "VARIANT")},
        "DATA": str(folder / "data"),
        "OUTPUT": str(folder / "output"),
        "BACKBONE": "assets/glyphs_clip.pt",
        "SIZE": "(48, 48)",
        "CFG": "demo",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    for script in ("zsclip/base2new_train", "capt/base2new_train", "capt/base2new_test", "capt/base2new_train"):
        command = ["bash", f"scripts/{script}.sh", "glyphs", "1"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
    assert "(skip)" in result.stdout  # what is done is not run again
    base, new = (folder / "output" / "base2new" / kind / "glyphs" / "shots_16" for kind in ("train_base", "test_new"))
    return {
        "zeroshot": base / "ZeroshotCLIP" / "demo" / "seed1",
        "base": base / "CAPT" / "demo_on_ZeroshotCLIP" / "seed1",
        "new": new / "CAPT" / "demo_on_ZeroshotCLIP" / "seed1",
    }


def record(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_shift_is_kept_since_held_out_classes_gain_by_it(runs):
    shift = record(runs["base"])["choices"]["shift"]
    assert shift["held_out_gain"] > 2 * shift["held_out_error"]
    assert shift["held_out_classes"] == 24


def test_the_bank_ranks_the_planted_pairs_highest(runs):
    """Half of the errors that remain behind the shift lie in them, of 276 pairs that there are."""
    bank = ConfusionBank.load(runs["base"])
    planted = {frozenset(pair) for pair in Glyphs.LOOK_ALIKES} & {
        frozenset((a, b)) for a in bank.classnames for b in bank.classnames
    }
    assert len(planted) == 8  # those of the base half
    ranked = {frozenset(pair[:2]): count for *pair, count in bank.top_pairs(bank.num_classes**2)}
    assert sum(ranked.get(pair, 0) for pair in planted) >= 0.5 * bank.num_confused
    assert next(iter(ranked)) in planted


def test_capt_gains_on_its_base_far_beyond_seed_noise(runs):
    result = record(runs["base"])
    assert result["confusion"]["base_accuracy"] == pytest.approx(record(runs["zeroshot"])["accuracy"])
    assert result["accuracy"] > result["confusion"]["base_accuracy"] + 10  # 17 to 19 points with seeds 1 2 3
    assert result["confusion"]["net"] > 40


def test_new_classes_gain_by_what_all_confusions_have_in_common(runs):
    result = record(runs["new"])
    assert result["num_classes"] == 24
    assert result["accuracy"] > result["confusion"]["base_accuracy"] + 8  # 11 to 14 points with seeds 1 to 5


def test_the_bank_holds_training_images_of_the_run_alone(runs):
    sample = json.loads((runs["base"] / "sample.json").read_text())
    seen = {path for paths in sample["train_x"].values() for path in paths}
    bank = ConfusionBank.load(runs["base"])
    stored = {bank.paths[index] for index in bank.entries.index[:-1].tolist()}
    assert stored
    assert stored <= seen
    tested = set(np.load(runs["base"] / "predictions.npz")["impaths"].tolist())
    validated = {path for paths in sample["val"].values() for path in paths}
    assert not seen & (tested | validated)
