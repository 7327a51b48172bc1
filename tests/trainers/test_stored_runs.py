"""Whole runs with stored features, read and made, give the figures and the weights of runs without, to the last bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_whole_runs import build  # noqa: F401 - a fixture

FROZEN = ["ZeroshotCLIP", "ZeroshotCLIP2", "LinearProbe", "CLIPAdapter", "TipAdapter", "TipAdapterF"]
KEY = "TRAINER.CAPT.CACHE.DISK_GB"


@pytest.fixture
def run(build, tmp_path, seen):  # noqa: F811
    """``run(name, folder, options)``: train and test; what the run leaves, and how many images its tower saw."""

    def one(name, folder, *options):
        seen.clear()
        flips = ["INPUT.TRANSFORMS", ("random_flip", "random_resized_crop", "normalize")]
        trainer = build(name, options=["OUTPUT_DIR", str(tmp_path / folder), *flips, *options])
        if name.startswith("Zeroshot"):
            trainer.test()
        else:
            trainer.train()
        arrays = dict(np.load(tmp_path / folder / "predictions.npz"))
        for model in trainer.get_model_names():
            arrays |= {key: value.numpy() for key, value in trainer._models[model].state_dict().items()}
        return arrays, json.loads((tmp_path / folder / "results.json").read_text()), sum(seen)

    return one


def _same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", FROZEN)
def test_figures_and_weights_are_those_without(name, run, capsys):
    without, record, num_without = run(name, "without", KEY, 0)
    assert record["num_encoded_before"] == 0
    made, record, num_made = run(name, "made")
    assert record["num_encoded_before"] == 0
    read, record, num_read = run(name, "read")
    assert record["num_encoded_before"] == 12
    assert num_without == num_made > num_read == 0
    assert _same(without, made)
    assert _same(without, read)
    assert name.startswith("Zeroshot") or "views were encoded before" in capsys.readouterr().out


def test_one_method_spares_the_others_the_tower(run):
    _, _, first = run("TipAdapterF", "first")
    assert first > 12
    others = [run(name, name)[2] for name in ("ZeroshotCLIP", "LinearProbe", "CLIPAdapter", "TipAdapter")]
    assert others == [0, 0, 0, 0]


def test_the_best_epoch_is_the_one_without(run):
    keys = ("TEST.FINAL_MODEL", "best_val")
    assert _same(run("LinearProbe", "without", *keys, KEY, 0)[0], run("LinearProbe", "with", *keys)[0])


def test_a_loader_that_is_not_plain_is_left_to_dassl(run, tmp_path):
    """Its own order, its own wrapper: what it gives cannot be told from the list of images."""
    _, record, seen = run("ZeroshotCLIP", "shuffled", "DATALOADER.TEST.SAMPLER", "RandomSampler")
    assert (seen, record["num_test"]) == (12, 12)
    assert not (tmp_path / ".capt").exists()


@pytest.mark.parametrize("name", ["CoOp", "MaPLe"])
def test_towers_that_are_tuned_store_nothing(name, build, tmp_path):  # noqa: F811
    build(name).train()
    assert not (tmp_path / ".capt").exists()
