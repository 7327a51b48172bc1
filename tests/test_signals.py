"""Signals and locks between processes: train.py on a data set of a dozen pictures, in a process group of its own."""

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "trainers")]

import colours  # noqa: E402, F401 - registers the data set
import killing  # noqa: E402
import tiny  # noqa: E402

import train  # noqa: E402
from trainers.capt.run.signals import SAME  # noqa: E402
from trainers.coop import CoOp  # noqa: E402


@pytest.fixture
def command(tmp_path):
    """The command line of a run of three epochs of three steps in ``<tmp_path>/out``."""
    torch.save(tiny.clip_state(), tmp_path / "clip.pt")
    words = ["--root", tmp_path, "--seed", 1, "--trainer", "CoOp", "--output-dir", tmp_path / "out"]
    words += ["DATASET.NAME", "Colours", "MODEL.BACKBONE.NAME", tmp_path / "clip.pt", "INPUT.SIZE", "(32, 32)"]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.NUM_WORKERS", 2, "OPTIM.MAX_EPOCH", 3, "USE_CUDA", False]
    words += ["OPTIM.NAME", "sgd", "TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.PREC", "fp32"]
    return [str(word) for word in words]


@pytest.fixture
def start(command, tmp_path):
    """``start(slow, seconds)``: train.py, whose step ``slow`` takes so long; returns its process once it is there."""
    children = []

    def one(slow=None, seconds=60.0, name="printed"):
        mark = tmp_path / "in_step"
        mark.unlink(missing_ok=True)

        def work():
            step, steps = CoOp.forward_backward, [0]

            def slowed(self, batch):
                if steps[0] == slow:
                    mark.touch()
                    until = time.monotonic() + seconds
                    while time.monotonic() < until:
                        time.sleep(0.01)
                steps[0] += 1
                return step(self, batch)

            CoOp.forward_backward = slowed
            train.collect_env_info = lambda: "a machine"
            return train.main(command)

        children.append(killing.started(work, tmp_path / name))
        while slow is not None and not mark.exists():
            time.sleep(0.01)
            assert os.waitpid(children[-1], os.WNOHANG) == (0, 0), (tmp_path / name).read_text()
        return children[-1]

    yield one
    for child in children:
        with contextlib.suppress(ProcessLookupError):  # its group is gone, as it should be
            os.killpg(child, signal.SIGKILL)


def last_line(tmp_path):
    return (tmp_path / "printed").read_text().splitlines()[-1]


def assert_goes_on(start, tmp_path, state):
    """The log says where, and the same command goes on from there and ends well."""
    assert last_line(tmp_path).endswith(
        f'saved in "{tmp_path}/out/resume/{state}"; the same command goes on from there'
    )
    assert last_line(tmp_path) in (tmp_path / "out/log.txt").read_text()
    assert killing.ended(start()) == 0
    assert "Resuming behind" in (tmp_path / "printed").read_text()
    assert sorted(path.name for path in (tmp_path / "out/prompt_learner").iterdir()) == [
        "checkpoint",
        "model.pth.tar-3",
    ]


def test_a_signal_to_the_whole_group_spares_the_workers(start, tmp_path):
    """Slurm and terminals signal every process of a job: the loader's workers must live until the step has ended."""
    child = start(slow=4, seconds=0.5)
    os.killpg(child, signal.SIGTERM)
    assert killing.ended(child) == 128 + signal.SIGTERM
    assert_goes_on(start, tmp_path, "epoch_0001_batch_00002.pt")


def test_a_second_signal_ends_at_once(start, tmp_path):
    child = start(slow=4)
    os.kill(child, signal.SIGUSR1)
    time.sleep(SAME + 0.3)
    since = time.monotonic()
    os.kill(child, signal.SIGTERM)
    assert killing.ended(child) == -signal.SIGTERM
    assert time.monotonic() - since < 1
    assert killing.ended(start()) == 0  # from the epoch before, and the lock of the dead process does not matter
    assert 'Resuming behind epoch 1 from "' in (tmp_path / "printed").read_text()


def test_the_same_signal_by_two_ways_is_one(start, tmp_path):
    child = start(slow=1, seconds=0.5)
    for _ in range(3):
        os.kill(child, signal.SIGUSR2)
        time.sleep(0.05)
    assert killing.ended(child) == 128 + signal.SIGUSR2
    assert_goes_on(start, tmp_path, "epoch_0000_batch_00002.pt")


def test_a_signal_before_the_training_has_its_line_and_code(command, tmp_path):
    def work():
        train.build_trainer = lambda cfg: os.kill(os.getpid(), signal.SIGINT)
        train.collect_env_info = lambda: "a machine"
        return train.main(command)

    assert killing.ended(killing.started(work, tmp_path / "printed")) == 128 + signal.SIGINT
    assert last_line(tmp_path) == "SIGINT: stopped before there was anything to save; give the same command again"


def test_an_output_folder_in_use_is_refused_and_nothing_in_it_changes(start, tmp_path):
    first = start(slow=4, seconds=1.5)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert killing.ended(start(name="second")) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    (line,) = [line for line in (tmp_path / "second").read_text().splitlines() if line.startswith("error")]
    words = rf'error: "{tmp_path}/out" is in use by process {first} on \S+ since [\d :-]+; wait for it, or give another'
    assert re.match(words, line)
    assert killing.ended(first) == 0
    assert not (tmp_path / "out/.run.lock").exists()
