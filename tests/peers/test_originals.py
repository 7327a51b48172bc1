"""The original repositories run beside ours: the stored numbers are theirs, and checkpoints load both ways.

Needs copies of the repositories; ``CAPT_PEERS`` names the folder that holds them (``run_original.REPOSITORIES``).
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trainers")]

import run_original  # noqa: E402
import tiny  # noqa: E402

PEERS = os.environ.get("CAPT_PEERS", "")
GOLDEN = HERE.parent / "golden" / "trainers"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PEERS, reason="CAPT_PEERS names no folder with copies of the repositories"),
]


def _run(repository, output, *more):
    command = [sys.executable, str(HERE / "run_original.py"), PEERS, repository, str(output), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(tiny.clip_state(), path)
    return path


@pytest.fixture(scope="module", params=list(run_original.REPOSITORIES))
def originals(request, tmp_path_factory, clip_path):
    """Output folder of the original's own run; checkpoints of ours in ``ours/<case>`` were read by the original."""
    repository, output = request.param, tmp_path_factory.mktemp("original")
    cases = {case: v for case, v in tiny.CASES.items() if v[0] in run_original.REPOSITORIES[repository]}
    for case, (name, keys) in cases.items():
        trainer = tiny.make_trainer(name, clip_path, keys)
        tiny.set_prompts(trainer.model)
        trainer.save_model(0, str(output / "ours" / case))
    _run(repository, output)
    return output, cases


def _logits(trainer):
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(tiny.batch()["img"]).numpy()


def test_stored_numbers_are_the_originals(originals):
    output, cases = originals
    for case in cases:
        with np.load(output / f"{case}.npz") as fresh, np.load(GOLDEN / f"{case}.npz") as stored:
            assert set(fresh) - {"logits_of_ours"} == set(stored)
            for key in stored:
                if fresh[key].dtype.kind == "f":
                    np.testing.assert_allclose(stored[key], fresh[key], rtol=1e-5, atol=1e-5, err_msg=f"{case} {key}")
                else:
                    assert (fresh[key] == stored[key]).all(), (case, key)


def test_the_originals_checkpoints_give_their_logits_here(originals, clip_path):
    output, cases = originals
    for case, (name, keys) in cases.items():
        trainer = tiny.make_trainer(name, clip_path, keys)
        trainer.load_model(str(output / case), epoch=3)
        with np.load(output / f"{case}.npz") as theirs:
            np.testing.assert_allclose(_logits(trainer), theirs["logits_run"], rtol=1e-5, atol=1e-5, err_msg=case)


def test_our_checkpoints_give_our_logits_there(originals, clip_path):
    output, cases = originals
    for case, (name, keys) in cases.items():
        trainer = tiny.make_trainer(name, clip_path, keys)
        tiny.set_prompts(trainer.model)
        with np.load(output / f"{case}.npz") as theirs:
            np.testing.assert_allclose(_logits(trainer), theirs["logits_of_ours"], rtol=1e-5, atol=1e-5, err_msg=case)


def test_the_originals_runs_serve_as_bases(originals, clip_path):
    from torch.nn.functional import normalize

    from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip
    from trainers.capt.bases.learners import BaseSpec, build_base

    output, cases = originals
    for case, (name, keys) in cases.items():
        if keys.get("CSC"):
            continue  # one context a class serves no other classes
        position = keys.get("CLASS_TOKEN_POSITION", "end")
        teacher = tiny.save_teacher(clip_path.parent)
        spec = BaseSpec(
            name,
            str(output / case),
            class_token_position=position,
            teacher_directory=teacher["TEACHER_DIR"],
            teacher_backbone=teacher["TEACHER_NAME"],
        )
        base = build_base(PromptedCLIP(load_clip(str(clip_path))), spec)
        base.set_classes(tiny.CLASS_NAMES)
        z = normalize(base.encode_image(tiny.batch()["img"]).feature, dim=-1)
        with np.load(output / f"{case}.npz") as theirs:
            np.testing.assert_allclose(base.logits(z), theirs["logits_run"], rtol=1e-5, atol=1e-5, err_msg=case)
