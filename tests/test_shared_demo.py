"""train.py by torchrun on the demo's pictures: two processes give the weights of one to 1e-6, and one of each file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """``run(trainer, out, launcher, words)``: a run of two epochs; the first draws the pictures."""
    folder = tmp_path_factory.mktemp("demo")

    def one(trainer, out, launcher=(), words=()):
        command = [sys.executable, *launcher, "train.py", "--root", folder / "data", "--seed", 1, "--trainer", trainer]
        command += ["--dataset-config-file", "configs/datasets/glyphs.yaml", "--output-dir", folder / out, *words]
        command += ["--config-file", f"configs/trainers/{trainer}/demo.yaml", "--backbone", "assets/glyphs_clip.pt"]
        command += ["INPUT.SIZE", "(48, 48)", "DATASET.NUM_SHOTS", 4, "DATASET.SUBSAMPLE_CLASSES", "base"]
        command += ["OPTIM.MAX_EPOCH", 2, "TRAINER.CAPT.CACHE.DIR", folder / f"features_{out}"]
        environ = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" or launcher, done.stderr
        return folder / out

    one("CoOp", "first", words=["--no-train"])
    return one


def files(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and "tensorboard" not in p.parts)


def assert_alike(one, two):
    assert files(one) == files(two)
    (path,) = one.glob("*/model.pth.tar-2")
    states = [torch.load(out / path.relative_to(one), weights_only=True)["state_dict"] for out in (two, one)]
    torch.testing.assert_close(*states, rtol=0, atol=1e-6)
    a, b = (np.load(out / "predictions.npz") for out in (one, two))
    for name in ("labels", "predictions", "impaths"):
        assert (a[name] == b[name]).all(), name
    records = [json.loads((out / "results.json").read_text()) for out in (one, two)]
    assert records[0]["accuracy"] == records[1]["accuracy"]
    assert [record.get("processes") for record in records] == [None, 2]
    epochs = [[line for line in (out / "log.txt").read_text().splitlines() if "epoch [" in line] for out in (one, two)]
    said = [[line.partition("loss")[2].partition("lr")[0] for line in lines] for lines in epochs]
    assert [len(lines) for lines in said] == [len(said[0])] * 2
    for figures in zip(*said, strict=True):
        one_has, two_have = (np.array([w for w in line.split() if w[0].isdigit()], dtype=float) for line in figures)
        np.testing.assert_allclose(one_has, two_have, atol=2e-3)


@pytest.mark.parametrize("trainer", ["CoOp", "MaPLe", "PromptSRC", "CAPT"])
def test_two_processes_leave_what_one_leaves(trainer, run):
    one = run(trainer, f"{trainer}_1")
    two = run(trainer, f"{trainer}_2", words=["--nproc", 2])
    assert_alike(one, two)


def test_torchrun_itself_does_the_same(run):
    one, two = run("CoOp", "by_hand_1"), run("CoOp", "by_hand_2", TORCHRUN)
    assert_alike(one, two)
