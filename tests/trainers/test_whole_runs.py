"""Training and testing through Dassl's own loop, on a data set of a dozen pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from PIL import Image

import trainers

NAMES = ["red", "green", "blue"]


class Colours(DatasetBase):
    """Four noisy pictures of each of three colours."""

    def __init__(self, cfg):
        source = np.random.RandomState(0)
        items = {"train": [], "test": []}
        for split, label, number in [(s, c, i) for s in items for c in range(3) for i in range(4)]:
            path = f"{cfg.DATASET.ROOT}/{split}_{label}_{number}.png"
            pixels = source.randint(0, 100, (tiny.SIDE, tiny.SIDE, 3))
            pixels[..., label] += 150
            if not Path(path).exists():  # a later run sees the same files, not new ones
                Image.fromarray(pixels.astype(np.uint8)).save(path)
            items[split].append(Datum(impath=path, label=label, classname=NAMES[label]))
        super().__init__(train_x=items["train"], val=items["test"], test=items["test"])


if "Colours" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(Colours)


@pytest.fixture
def build(tmp_path, clip_path):
    def build_one(name, keys=None, options=()):
        cfg = get_cfg_default()
        trainers.extend_cfg(cfg)
        tiny.configure(cfg, name, clip_path, keys)
        cfg.merge_from_list(["DATASET.NAME", "Colours", "DATASET.ROOT", str(tmp_path), "SEED", 1])
        cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", 0, "OPTIM.LR", 0.2])
        cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "INPUT.TRANSFORMS", ("normalize",), *options])
        cfg.freeze()
        torch.manual_seed(1)
        return build_trainer(cfg)

    return build_one


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
