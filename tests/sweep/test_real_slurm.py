"""Sweeps on the Slurm that answers here: whole, preempted, failing, and with a client that is killed.

One node and no accounting are enough. Jobs that go back into the queue are let go at once, which Slurm delays.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("submitit", reason="the extra sweep is not installed")

from capt_tools.sweep import slurm  # noqa: E402
from capt_tools.sweep.state import Sweep  # noqa: E402
from capt_tools.sweep.status import standings  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slurm
DEMO = {"CFG": "demo", "BACKBONE": "assets/glyphs_clip.pt", "SIZE": "(48, 48)", "OMP_NUM_THREADS": "1"}
CLUSTER = ["--cluster", "slurm", "--gpus", "0", "--cpus", "1", "--mem", "2G"]


def draw_textures(folder):
    """A data set in DTD's layout: four classes of noise, each around a colour of its own."""
    noise = np.random.default_rng(0)
    for name, colour in {"banded": 40, "dotted": 100, "woven": 160, "zigzagged": 220}.items():
        (folder / "dtd/images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = noise.normal((colour, 128, 255 - colour), 25, (48, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "dtd/images" / name / f"{name}_{number:04d}.jpg")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    draw_textures(folder)
    return folder


@pytest.fixture
def cluster(data, tmp_path, monkeypatch):
    """The variables of small runs below tmp_path; what is left in the queue goes behind the test."""
    try:
        slurm.queue()
    except slurm.StopError as error:
        pytest.skip(f"no Slurm answers: {error.line}")
    for name, value in {**DEMO, "DATA": str(data), "OUTPUT": str(tmp_path / "out"), "PYTHON": sys.executable}.items():
        monkeypatch.setenv(name, value)
    yield
    if (tmp_path / "out/sweeps").is_dir():
        sweep("cancel")


def sweep(action, *argv):
    command = [sys.executable, "scripts/sweep.py", action, *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def stand():
    found = Sweep.find(os.environ["OUTPUT"], "base2new")
    return {cell.key: s for cell, s in zip(found.cells, standings(found, found.nodes(), slurm.queue()), strict=True)}


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"it took too long: {stand()}"
        time.sleep(0.5)
    return value


def let_go():
    """Jobs that were put back begin in a moment, not in two minutes.

    Within the second in which it put a job back, Slurm's credentials for it are revoked, and it could not start.
    """
    delayed = [job for job, said in slurm.queue().items() if said.reason == "BeginTime"]
    if delayed:
        time.sleep(2)
    for job in delayed:
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)


def ended():
    let_go()
    return not {"running", "waiting"} & {state for state, _ in stand().values()}


def digests(folder):
    """The bytes of what a run made; of a checkpoint, those of its weights.

    A checkpoint holds Python's random state too, which is another where the shots were drawn, as in the first run
    on a data set, than where they were found.
    """
    found = {}
    for path in [*folder.rglob("*.safetensors"), *folder.rglob("predictions.npz")]:
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("model*.pth.tar-*[0-9]"):
        weights = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
        for name, value in weights.items():
            found[f"{path.name} {name}"] = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    return found


def test_a_sweep_of_two_data_sets_two_seeds_and_capt_on_two_bases_ends_complete(cluster, monkeypatch):
    monkeypatch.setenv("SHOTS", "2")
    grid = ["--methods", "coop capt:CoOp capt:MaPLe", "--datasets", "glyphs dtd", "--seeds", "1 2", "--epochs", "2"]
    sent = sweep("submit", *grid, *CLUSTER)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.startswith("Sent 12 jobs: ")
    wait_for(ended, 1500)
    table = sweep("collect")
    assert table.returncode == 0, table.stdout
    assert table.stdout.startswith("12 of 12 cells are done\n")
    for method in ("CoOp", "CAPT on CoOp", "CAPT on MaPLe"):
        assert re.search(rf"\b{method}\b", table.stdout)
    # no base learner was trained twice, and none was taken before it was there
    for log in Path(os.environ["OUTPUT"], "sweeps/base2new/cells").glob("capt-CoOp*.log"):
        assert "CAPT needs its base learner" not in log.read_text()
    again = sweep("submit", *grid, *CLUSTER)
    assert again.stdout.startswith("Sent 0 jobs\n")


def test_a_job_that_is_preempted_again_and_again_ends_with_the_bytes_of_a_straight_run(cluster, tmp_path, monkeypatch):
    """By Slurm's requeue, by the warning before a time limit, and by a grace time in which Slurm ends nothing."""
    monkeypatch.setenv("OPTS", "TRAINER.CAPT.MGDE.BETA 0.1")  # with experts CAPT has epochs to be stopped in
    grid = ["--methods", "capt:MaPLe", "--datasets", "glyphs", "--seeds", "1", "--shots", "4", "--epochs", "60"]
    assert sweep("submit", *grid, *CLUSTER).returncode == 0
    runs = tmp_path / "out/base2new/train_base/glyphs/shots_4"
    base, capt = runs / "MaPLe/demo/seed1", runs / "CAPT/demo_on_MaPLe/seed1"
    job = Sweep.find(os.environ["OUTPUT"], "base2new").jobs["capt-MaPLe_glyphs_1"]
    ways = [
        (base, 2, ("scontrol", "requeue")),
        (capt, 3, ("scancel", "-s", "USR2")),
        (capt, 20, ("scancel", "-s", "TERM")),
    ]
    for folder, epoch, preempt in ways:
        words = f"epoch [{epoch}/"  # in any log: a run that goes on has another
        wait_for(lambda: any(words in log.read_text() for log in folder.glob("log.txt*")), 600)  # noqa: B023
        subprocess.run([*preempt, job], check=True)
        wait_for(lambda: slurm.queue()[job].state == "PENDING", 60)
        assert stand()["capt-MaPLe_glyphs_1"] == ("waiting", f"to go on, for BeginTime (job {job})")
        let_go()
    wait_for(ended, 600)
    assert stand()["capt-MaPLe_glyphs_1"].state == "done"
    log = Path(os.environ["OUTPUT"], "sweeps/base2new/cells/capt-MaPLe_glyphs_1.log").read_text()
    found = re.findall(r"^(SIG\w+): stopped behind epoch \d+", log, re.MULTILINE)  # at its end or amid the next
    assert found == ["SIGTERM", "SIGUSR2", "SIGTERM"], log[-3000:]

    straight = tmp_path / "straight"
    assert sweep("submit", *grid, "--output", str(straight)).returncode == 0
    for folder in (base, capt, Path(str(capt).replace("train_base", "test_new"))):
        expected = digests(straight / folder.relative_to(tmp_path / "out"))
        assert expected
        assert digests(folder) == expected


def test_a_job_of_several_cells_is_preempted_and_goes_on(cluster, tmp_path):
    """Its runs share a process, which gets the signal as the job does."""
    grid = ["--methods", "coop", "--datasets", "glyphs", "--seeds", "1 2", "--shots", "4", "--epochs", "40"]
    sent = sweep("submit", *grid, *CLUSTER, "--per-job", "2")
    assert sent.stdout.startswith("Sent 1 job"), sent.stderr
    first, second = (tmp_path / f"out/base2new/train_base/glyphs/shots_4/CoOp/demo/seed{seed}" for seed in (1, 2))
    job = Sweep.find(os.environ["OUTPUT"], "base2new").jobs["coop_glyphs_1"]
    for folder in (first, second):
        wait_for(lambda: any("epoch [3/" in log.read_text() for log in folder.glob("log.txt*")), 600)  # noqa: B023
        subprocess.run(["scancel", "-s", "USR2", job], check=True)
        wait_for(lambda: slurm.queue()[job].state == "PENDING", 60)
        let_go()
    wait_for(ended, 600)
    assert {standing.state for standing in stand().values()} == {"done"}
    for seed in (1, 2):
        log = Path(os.environ["OUTPUT"], f"sweeps/base2new/cells/coop_glyphs_{seed}.log").read_text()
        assert len(re.findall(r"^SIGUSR2: stopped behind epoch \d+", log, re.MULTILINE)) == 1, log[-3000:]


def test_a_job_that_fails_is_reported_and_the_rest_goes_on(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOTS", "1")
    monkeypatch.setenv("EPOCHS", "1")
    blocked = tmp_path / "out/base2new/train_base/dtd/shots_1/CoOp/demo"
    blocked.mkdir(parents=True)
    (blocked / "seed1").touch()  # no folder can be made there
    grid = ["--methods", "coop capt:CoOp zsclip", "--datasets", "dtd", "--seeds", "1"]
    assert sweep("submit", *grid, *CLUSTER).returncode == 0
    wait_for(ended, 300)
    found = stand()
    assert {key: standing.state for key, standing in found.items()} == {
        "coop_dtd_1": "failed",
        "zsclip_dtd_1": "done",
        "capt-CoOp_dtd_1": "failed",
    }
    assert "seed1" in found["coop_dtd_1"].detail
    assert found["capt-CoOp_dtd_1"].detail == "it needs what coop dtd seed 1 should have made, which is not there"
    assert sweep("collect").returncode == 1
    (blocked / "seed1").unlink()
    assert sweep("submit", *grid, *CLUSTER).stdout.startswith("Sent 2 jobs: ")
    wait_for(ended, 300)
    assert {standing.state for standing in stand().values()} == {"done"}


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.6, 1.0])
def test_a_client_that_is_killed_and_started_again_finds_everything(moment, cluster, monkeypatch):
    """Killed with what it has started, at some moment between its first word to Slurm and its last."""
    monkeypatch.setenv("SHOTS", "1")
    monkeypatch.setenv("EPOCHS", "1")
    argv = ["submit", "--methods", "zsclip capt", "--datasets", "dtd", "--seeds", "1 2", *CLUSTER]
    command = [sys.executable, "scripts/sweep.py", *argv]
    client = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    file = Path(os.environ["OUTPUT"], "sweeps/base2new/sweep.json")
    wait_for(file.exists, 60)
    time.sleep(moment)
    os.killpg(client.pid, signal.SIGKILL)
    client.wait()
    assert sweep(*argv).returncode == 0
    jobs = Sweep.find(os.environ["OUTPUT"], "base2new").jobs
    assert len(jobs) == 4
    wait_for(ended, 400)
    assert {standing.state for standing in stand().values()} == {"done"}
    for log in file.parent.glob("cells/*.log"):
        assert log.read_text().count("Run this job and save") == 2, log  # each run was started once
