"""Training and testing through Dassl's own loop, on a data set of a dozen pictures."""

import functools
import json

import colours
import numpy as np
import pytest


@pytest.fixture
def build(tmp_path, clip_path):
    return functools.partial(colours.build, tmp_path, clip_path)


ADAPTERS = ["LinearProbe", "CLIPAdapter", "TipAdapterF"]


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "MaPLe", "IVLP", "VPT", "PromptSRC", *ADAPTERS])
def test_the_checkpoint_of_a_run_gives_its_result(name, build, tmp_path, capsys):
    keys = {"GPA_MEAN": 3} if name == "PromptSRC" else {}
    trainer = build(name, keys)
    trainer.train()
    out = capsys.readouterr().out
    assert "epoch [3/3] batch [3/3]" in out
    assert ("acc" in out.split("epoch [1/3]")[1].splitlines()[0]) == (name in ("CoOp", *ADAPTERS))
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["trainer"] == name
    assert record["num_test"] == 12
    with np.load(tmp_path / "out" / "predictions.npz") as stored:
        probs = stored["probs"]

    tested = build(name, keys, ["OUTPUT_DIR", str(tmp_path / "again")])
    tested.load_model(str(tmp_path / "out"), epoch=3)
    assert tested.test() == pytest.approx(record["accuracy"])
    with np.load(tmp_path / "again" / "predictions.npz") as stored:
        np.testing.assert_allclose(stored["probs"], probs, rtol=1e-5, atol=1e-6)


def test_a_finished_run_resumes_from_its_own_files(build, tmp_path, capsys):
    build("CoOp").train()
    accuracy = json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"]
    capsys.readouterr()
    trainer = build("CoOp")
    trainer.train()
    out = capsys.readouterr().out
    assert "will resume training" in out
    assert "epoch [" not in out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"] == pytest.approx(accuracy)


def test_the_best_model_is_deployed(build, capsys):
    build("IVLP", options=["TEST.FINAL_MODEL", "best_val"]).train()
    out = capsys.readouterr().out
    assert "Deploy the model with the best val performance" in out
    assert 'Loading weights to VLPromptLearner from "' in out


def test_zero_shot_clip_only_tests(build, tmp_path):
    trainer = build("ZeroshotCLIP")
    trainer.load_model("")
    accuracy = trainer.test()
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"] == pytest.approx(accuracy)
