"""Many runs in one process: the same answers as of a process each, and no run that spoils another."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from capt_tools import many_runs
from capt_tools.many_runs import as_new
from capt_tools.plan.lane import Lane
from capt_tools.plan.runner import Runner
from capt_tools.plan.settings import Settings
from capt_tools.plan.steps import Job, StopError
from capt_tools.sweep.run_all import run_all

ROOT = Path(__file__).resolve().parents[2]

# Stands for train.py: says its process and arguments, then does what its first argument asks for.
SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from capt_tools.plan.lane import DONE, VARIABLE

def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    print(os.getpid(), *argv, flush=True)
    os.system("echo from a child of $PPID")
    if argv[0] == "bad":
        print("error: bad", file=sys.stderr)
        return 2
    if argv[0] == "break":
        raise RuntimeError("broken")
    if argv[0] == "kill":
        os.kill(os.getpid(), 9)
    if argv[0] == "unended":
        print("no end of line", end="")
    return 0

if __name__ == "__main__":
    if VARIABLE in os.environ:
        from capt_tools.many_runs import serve
        sys.exit(serve(main))
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("lane") / "train.py"
    path.write_text(SCRIPT)
    return str(path)


@pytest.fixture
def heard():
    return []


def pids(heard):
    return [line.split()[0] for line in heard if line[:1].isdigit()]


@pytest.mark.slow
def test_runs_share_a_process_until_one_breaks_down(script, heard):
    with Lane() as lane:

        def call(*arguments):
            return lane.call([sys.executable, script, *arguments], os.environ, heard.append)

        codes = [call("good", "a b"), call("bad"), call("unended"), call("break"), call("good"), call("kill")]
        codes.append(call("last"))
    assert codes == [0, 2, 0, 1, 0, -9, 0]
    first, second, third, fourth, fifth, sixth, seventh = pids(heard)
    assert first == second == third == fourth
    assert fifth == sixth
    assert len({fourth, fifth, seventh}) == 3
    assert heard[0].endswith(" good a b")
    assert heard[1] == f"from a child of {first}"
    assert "error: bad" in heard
    assert "no end of line" in heard
    assert "RuntimeError: broken" in heard
    assert not any("\0" in line for line in heard)


def test_without_a_listener_the_lines_go_where_ours_go(script, capfd):
    with Lane() as lane:
        codes = [lane.call([sys.executable, script, word], os.environ) for word in ("good", "bad", "good")]
    assert codes == [0, 2, 0]
    out = capfd.readouterr()
    assert len(set(pids(out.out.splitlines()))) == 1
    assert out.out.count("from a child") == 3
    assert out.err == "error: bad\n"


@pytest.mark.slow
def test_other_commands_and_other_variables_get_other_processes(script, heard, tmp_path):
    other = tmp_path / "train.py"
    other.write_text(SCRIPT)
    with Lane() as lane:
        for path, device in ((script, "0"), (script, "0"), (script, "1"), (str(other), "1")):
            lane.call([sys.executable, path, "good"], {**os.environ, "CUDA_VISIBLE_DEVICES": device}, heard.append)
    a, b, c, d = pids(heard)
    assert a == b
    assert len({a, c, d}) == 3


def test_a_train_py_that_knows_no_lane_gets_a_process_a_run(tmp_path, heard):
    path = tmp_path / "train.py"
    path.write_text("import os, sys\nprint(os.getpid(), *sys.argv[1:])\nsys.exit(int(sys.argv[1]))")
    with Lane() as lane:
        codes = [lane.call([sys.executable, str(path), code], os.environ, heard.append) for code in "030"]
    assert codes == [0, 3, 0]
    assert len(set(pids(heard))) == 3


def test_a_process_that_is_gone_does_not_take_a_script_with_it(tmp_path):
    """Scripts end at once where the reader of their output has gone; the pipe to a lane is another matter."""
    code = f"""
import signal, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from capt_tools.plan.lane import Lane
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
lane = Lane()
lane._process = subprocess.Popen([sys.executable, "-c", "import os; os.close(0); input()"], stdin=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL)
import time
time.sleep(1)  # its end of the pipe is closed
lane._process.poll = lambda: None  # and it is not yet known to have ended
print(lane._send(["a run"]))
lane.close()
print("goes on", signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL, signal.sigpending())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "False\ngoes on True set()\n"


def test_the_runner_says_and_skips_as_before(script, heard, tmp_path):
    settings = Settings(python=sys.executable, house=str(Path(script).parent))
    done = tmp_path / "done"
    done.mkdir()
    (done / "results.json").touch()
    plan = [Job(str(tmp_path / "a"), ["good"]), Job(str(done), ["good"]), "a word", Job(str(tmp_path / "b"), ["bad"])]
    with Lane() as lane, pytest.raises(StopError) as error:
        Runner(settings, os.environ, heard.append, lane=lane).run(plan)
    assert error.value.code == 2
    alone = []
    with pytest.raises(StopError):
        Runner(settings, os.environ, alone.append).run(plan)
    assert [line for line in heard if not line[:1].isdigit() and "child" not in line] == [
        line for line in alone if not line[:1].isdigit() and "child" not in line
    ]
    with pytest.raises(StopError, match="cannot start no-such-python .*; set PYTHON"), Lane() as lane:
        Runner(Settings(python="no-such-python"), lane=lane).run(plan)


@pytest.mark.parametrize(
    ("gpus", "given", "threads"), [("0 1", "", "1"), ("0 1", "3", "3"), ("0", "", None), ("", "", None)]
)
def test_lanes_beside_each_other_take_a_thread_each(gpus, given, threads, monkeypatch, tmp_path):
    """And what the user says stands."""
    monkeypatch.chdir(ROOT)
    stub = tmp_path / "stub"
    stub.write_text('#!/bin/sh\necho "threads=$OMP_NUM_THREADS"\n')
    stub.chmod(0o755)
    environ = {"PATH": os.environ["PATH"], "PYTHON": str(stub), "OUTPUT": str(tmp_path / "out"), "GPUS": gpus}
    environ |= {"METHODS": "zsclip", "DATASETS": "dtd", "SEEDS": "1 2", **({"OMP_NUM_THREADS": given} if given else {})}
    lines = []
    assert run_all("base2new", Settings.read(environ), environ, lines.append) == 0
    assert [line for line in lines if line.startswith("threads=")] == [f"threads={threads or ''}"] * 4


# What a run finds in its process


def _draws():
    return torch.rand(2).tolist()


def test_every_run_finds_its_process_as_if_new():
    as_new()
    first = _draws()
    numpy_draw, python_draw = np.random.rand(), random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    fixed = np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    as_new()
    assert torch.initial_seed() == many_runs.FIRST_SEED
    assert torch.get_num_threads() == many_runs.FIRST_THREADS
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert not torch.backends.cudnn.benchmark
    assert _draws() == first
    assert (np.random.rand(), random.random()) != fixed  # noqa: NPY002 - as in a new process: from the system
    assert numpy_draw != python_draw


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process's memory is Linux's")
def test_the_peak_of_memory_is_the_runs_own():
    import resource

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    as_new()
    before = peak()
    block = np.ones(40 * 2**20)  # 320 MB
    assert peak() - before > 250
    del block
    as_new()
    assert peak() - before < 100


@pytest.mark.slow
def test_runs_in_one_process_give_the_bytes_of_runs_alone(tmp_path):
    """The demo's CLIP and pictures: everything but times and paths, down to predictions and checkpoints."""
    data = tmp_path / "data"
    words = ["--root", str(data), "--seed", "1", "--dataset-config-file", "configs/datasets/glyphs.yaml"]
    options = ["INPUT.SIZE", "(48, 48)", "DATASET.NUM_SHOTS", "2", "DATASET.SUBSAMPLE_CLASSES", "base"]
    options += ["OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0"]
    environ, found = {**os.environ, "OMP_NUM_THREADS": "1"}, {}
    for how in ("alone", "together"):
        lane = Lane()
        for name in ("LinearProbe", "CoOp", "CAPT", "TipAdapterF"):  # CoOp draws its prompts behind the CLIP
            out = tmp_path / how / name
            run = [*words, "--config-file", f"configs/trainers/{name}/demo.yaml", "--trainer", name]
            run += ["--backbone", "assets/glyphs_clip.pt", "--output-dir", str(out), *options]
            assert lane.call([sys.executable, str(ROOT / "train.py"), *run], environ, [].append) == 0
            if how == "alone":
                lane.close()
            arrays = dict(np.load(out / "predictions.npz"))
            for path in sorted(out.glob("*/model.pth.tar-1")):
                arrays |= torch.load(path, weights_only=True)["state_dict"]
            record = json.loads((out / "results.json").read_text())
            found[how, name] = arrays, record["accuracy"], (out / "log.txt").read_text().count("\n")
        lane.close()
    for name in ("LinearProbe", "CoOp", "CAPT", "TipAdapterF"):  # CoOp draws its prompts behind the CLIP
        (a, *others), (b, *same) = found["alone", name], found["together", name]
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[key], b[key]) for key in a)
        assert others[0] == same[0]
