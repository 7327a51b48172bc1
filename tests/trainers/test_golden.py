"""Logits, gradients, losses and checkpoint keys against the original repositories.

The numbers in ``tests/golden/trainers`` were computed by the originals (CoOp ff61507, MaPLe 69bce21, PromptSRC bb95c77,
PromptKD ec244f7) in fp32 with ``tests/peers/run_original.py``.
"""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "trainers"
BEFORE_BATCH_NORM = "grad/VPT_image_trans.conv1.0.bias"  # a bias that the batch norm behind it cancels
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
pytestmark = pytest.mark.regression


@pytest.fixture(params=list(tiny.CASES))
def case(request):
    name, keys = tiny.CASES[request.param]
    with np.load(GOLDEN / f"{request.param}.npz") as stored:
        return name, keys, dict(stored)


def test_clip_weights_are_those_of_the_stored_numbers():
    assert tiny.checksum(tiny.clip_state()) == (GOLDEN / "clip_checksum.txt").read_text().strip()


def test_steps_match_the_original(case, make_trainer):
    name, keys, golden = case
    trainer = make_trainer(name, keys)
    ours = tiny.record_steps(trainer, trainer.model)
    for key in ("prompts", "images"):
        assert ours[key] == golden[key], "the inputs differ from those the stored numbers were computed with"
    gradients = {k: v for k, v in golden.items() if k.startswith("grad/") and k != BEFORE_BATCH_NORM}
    assert all(abs(v).max() > 1e-6 for v in gradients.values()), "a stored gradient is zero"
    assert {k for k in ours if k.startswith("grad/")} == {k for k in golden if k.startswith("grad/")}
    for key in sorted(set(ours) - {"prompts", "images"}):
        np.testing.assert_allclose(ours[key], golden[key], err_msg=key, **TOLERANCE)


def test_run_with_schedule_and_averaging_matches_the_original(case, make_trainer):
    name, keys, golden = case
    trainer = make_trainer(name, keys)
    data = tiny.batch()
    tiny.set_prompts(trainer.model)
    trainer.num_batches, trainer.batch_idx = 1, 0
    for trainer.epoch in range(3):
        trainer.set_model_mode("train")
        trainer.forward_backward(data)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = trainer.model_inference(data["img"]).numpy()
    np.testing.assert_allclose(logits, golden["logits_run"], **TOLERANCE)


def test_checkpoint_keys_are_the_originals(case, make_trainer):
    name, keys, golden = case
    trainer = make_trainer(name, keys)
    part = trainer._models[trainer.checkpoint_name]
    assert sorted(part.state_dict()) == golden["keys"].tolist()
