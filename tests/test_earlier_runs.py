"""A run of version 0.1.0's flat layout, stored with what it answered: it must load and answer the same.

Made by the trainer of commit b1ff2a1 on the pictures of tests/capt/tiny_capt.py and its CLIP, made narrower so that
the checkpoint is small; one epoch of CAPT on zero-shot CLIP, base half.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import tiny_capt  # noqa: E402
from test_capt_end_to_end import CLASSES, PARTS, _registered, build  # noqa: E402, F401

import trainers.capt as capt  # noqa: E402

STORED = Path(__file__).parent / "golden" / "capt_run"
OPTIONS = ("TRAINER.CAPT.MGDE.HIDDEN_RATIO", 1, "MODEL.BACKBONE.NAME", "clip.pt", "DATASET.ROOT", "data")

pytestmark = pytest.mark.regression


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A copy of the stored run beside the CLIP and the pictures that its configuration names."""
    monkeypatch.setattr(tiny_capt.tiny, "VISUAL_WIDTH", 64)
    monkeypatch.setattr(tiny_capt.tiny, "EMBED_DIM", 16)
    monkeypatch.chdir(tmp_path)
    torch.save(tiny_capt.clip_state(), "clip.pt")
    tiny_capt.draw_pictures("data", CLASSES, 9)
    shutil.copytree(STORED, "run")
    return Path("run")


def expected():
    return np.load(STORED / "expected_logits.npz")


def test_capt_load_gives_the_stored_logits(run):
    predictor, stored = capt.load(run), expected()
    images = [f"data/{name}/{i}.png" for name in CLASSES[:4] for i in PARTS["test"]]
    np.testing.assert_allclose(predictor.logits(images), stored["own"], atol=1e-4)
    np.testing.assert_allclose(predictor.logits(images, CLASSES), stored["all_classes"], atol=1e-4)
    assert np.abs(stored["own"] - stored["base"]).max() > 1  # so that CAPT's part is seen, not the base's alone
    assert len(predictor.bank) == 16


def test_the_trainer_loads_and_gives_the_stored_logits(run, tmp_path):
    trainer, stored = build(tmp_path, tmp_path / "new", *OPTIONS), expected()
    trainer.load_model("run")
    assert trainer.loaded_epoch == 1
    own, base = [], []
    trainer.set_model_mode("eval")
    for batch in trainer.test_loader:
        logits, base_logits = trainer.inference(batch["img"])
        own.append(logits)
        base.append(base_logits)
    np.testing.assert_allclose(torch.cat(own), stored["own"], atol=1e-4)
    np.testing.assert_allclose(torch.cat(base), stored["base"], atol=1e-4)


def test_the_stored_record_agrees_with_a_new_test(run, tmp_path):
    trainer = build(tmp_path, tmp_path / "new", *OPTIONS)
    trainer.load_model("run", epoch=1)
    trainer.test()
    new, old = np.load(tmp_path / "new/predictions.npz"), np.load(run / "predictions.npz")
    assert sorted(new.files) == sorted(old.files)
    np.testing.assert_allclose(new["probs"], old["probs"], atol=1e-5)
    assert new["impaths"].tolist() == old["impaths"].tolist()


def test_a_stored_run_is_resumed(run, tmp_path, capsys):
    """Its bank is this code's bank for the same images, and its checkpoint goes on training."""
    more = (
        "OPTIM.MAX_EPOCH",
        2,
        "OPTIM.MOMENTUM",
        0.0,
        "OPTIM.LR",
        0.5,
        "RESUME",
        "run",
        "TRAINER.CAPT.SAM.LAYOUT",
        False,
    )
    trainer = build(tmp_path, "run", *OPTIONS, *more)
    trainer.train()
    assert trainer.start_epoch == 1
    assert (run / "capt/model.pth.tar-2").is_file()


def test_a_checkpoint_of_format_1_has_no_shift_and_its_own_sharpness(run, tmp_path):
    """Whatever the model held before; and its bank, of format 2, is compared by the plain cosine."""
    trainer = build(tmp_path, tmp_path / "new", *OPTIONS)
    trainer.model.refiner.systematic.shift.fill_(0.5)
    assert trainer.cfg.TRAINER.CAPT.MGDE.SHARPNESS != 7.0
    trainer.load_model("run")
    for model in (trainer.model, capt.load(run).model):
        assert not model.refiner.systematic.shift.any()
        assert model.refiner.expert.sharpness == 7.0
        assert model.bank.shrinkage == 1.0


def test_going_on_with_another_likeness_is_refused(run, tmp_path):
    """Images were compared by class tokens alone then; with layouts the rest of the run would be another's."""
    trainer = build(tmp_path, "run", *OPTIONS, "OPTIM.MAX_EPOCH", 2, "RESUME", "run")
    with pytest.raises(ValueError, match=r"layout: bank has None, this run has True"):
        trainer.train()
