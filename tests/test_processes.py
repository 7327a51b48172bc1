"""train.py in several processes: what they print and write, signals to any of them, one that fails or is killed."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "trainers")]

import colours  # noqa: E402, F401 - registers the data set
import killing  # noqa: E402
import tiny  # noqa: E402
from processes import ended, launched, started  # noqa: E402

import train  # noqa: E402
from capt_tools.launch import launch  # noqa: E402
from trainers.capt.run.distributed import rank  # noqa: E402
from trainers.capt.run.lock import hold_folder  # noqa: E402
from trainers.coop import CoOp  # noqa: E402

STATE = "epoch_0001_batch_00002.pt"


@pytest.fixture
def start(tmp_path):
    """``start(number, at, act, where)``: train.py in so many processes, ``act`` called in step ``at``; its children."""
    torch.save(tiny.clip_state(), tmp_path / "clip.pt")
    children = []

    def one(number=2, at=None, act=None, where="out", more=(), flags=()):
        words = [*flags, "--root", tmp_path, "--trainer", "CoOp", "--output-dir", tmp_path / where]
        words += ["DATASET.NAME", "Colours", "MODEL.BACKBONE.NAME", tmp_path / "clip.pt", "INPUT.SIZE", "(32, 32)"]
        words += ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.NUM_WORKERS", 0, "OPTIM.MAX_EPOCH", 3]
        words += ["OPTIM.NAME", "sgd", "TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.PREC", "fp32", "TRAIN.KEEP_MINUTES", 0.0]
        words += ["USE_CUDA", False, "SEED", 1, *more]

        def work():
            step, steps = CoOp.forward_backward, [0]

            def acting(self, batch):
                steps[0] += 1
                if steps[0] - 1 == at:
                    act(self, batch)
                return step(self, batch)

            CoOp.forward_backward = acting
            train.collect_env_info = lambda: "a machine"
            return train.main([str(word) for word in words])

        children.extend(new := started(number, work, tmp_path / f"of_{where}"))
        return new

    yield one
    for child in children:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


def printed(tmp_path, where="out"):
    return [path.read_text() for path in sorted((tmp_path / f"of_{where}").glob("printed*"))]


def only_error(tmp_path):
    """The one line of all processes that says why the run has ended."""
    lines = "".join(printed(tmp_path)).splitlines()
    (line,) = [line for line in lines if line.startswith("error") or "SIGTERM" in line or "Traceback" in line]
    return line


def final(tmp_path, where):
    return (tmp_path / where / "prompt_learner/model.pth.tar-3").read_bytes()


def in_rank(number, act):
    return lambda *step: act(*step) if rank() == number else None


def signalled(signum):
    return lambda trainer, batch: os.kill(os.getpid(), signum)


def raise_error(trainer, batch):
    raise ValueError("the images are gone")


def test_the_first_process_alone_speaks_and_writes(start, tmp_path):
    assert ended(start()) == [0, 0]
    first, second = printed(tmp_path)
    assert "accuracy" in first
    assert second == ""
    assert (tmp_path / "out/log.txt").read_text() in first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("log.txt", "predictions.npz", "prompt_learner", "results.json", "sample.json", "tensorboard")
    ]
    assert len(list((tmp_path / "out/tensorboard").iterdir())) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_to_one_process_stops_both_behind_the_same_step(number, start, tmp_path):
    assert ended(start(2, 4, in_rank(number, signalled(signal.SIGUSR1)))) == [128 + signal.SIGUSR1] * 2
    first, second = printed(tmp_path)
    assert first.splitlines()[-1] == (
        f'SIGUSR1: stopped behind epoch 1 and 2 batches of the next; saved in "{tmp_path}/out/resume/{STATE}"; '
        "the same command goes on from there"
    )
    assert second == ""
    assert ended(start()) == [0, 0]
    assert ended(start(where="straight")) == [0, 0]
    assert final(tmp_path, "out") == final(tmp_path, "straight")


def test_one_process_goes_on_where_two_have_stopped(start, tmp_path):
    assert ended(start(2, 4, signalled(signal.SIGTERM))) == [128 + signal.SIGTERM] * 2
    assert ended(start(1)) == [0]
    assert ended(start(1, where="straight")) == [0]
    one, other = (
        torch.load(tmp_path / where / "prompt_learner/model.pth.tar-3", weights_only=True)["state_dict"]["ctx"]
        for where in ("out", "straight")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_in_one_process_is_one_line_and_ends_all(number, start, tmp_path):
    children = start(2, 4, in_rank(number, raise_error))
    assert killing.ended(children[number]) == 2
    time.sleep(0.5)  # the other notices, and waits for torchrun to end it
    os.kill(children[1 - number], signal.SIGTERM)
    assert killing.ended(children[1 - number]) == -signal.SIGTERM
    assert only_error(tmp_path) == "error: the images are gone"
    assert ended(start()) == [0, 0]  # from the epoch before
    assert 'Resuming behind epoch 1 from "' in printed(tmp_path)[0]


def test_an_error_that_all_have_is_one_line(start, tmp_path):
    assert ended(start(more=("TRAINER.COOP.CLASS_TOKEN_POSITION", "nowhere"))) == [2, 2]
    line = only_error(tmp_path)
    assert line == "error: TRAINER.COOP.CLASS_TOKEN_POSITION must be one of end, middle, front, got 'nowhere'"


def test_a_loss_that_is_no_number_in_one_process_ends_all_with_one_line(start, tmp_path):
    def spoil(trainer, batch):
        compute = trainer.compute_loss
        trainer.compute_loss = lambda images, labels: (compute(images, labels)[0] * float("nan"), {})

    assert ended(start(2, 4, in_rank(1, spoil))) == [2, 2]
    line = only_error(tmp_path)
    assert line.startswith("error: Loss is infinite or NaN! In epoch 2, batch 2, the loss is nan; the last good")


def test_a_killed_process_is_noticed(start, tmp_path):
    children = start(2, 4, in_rank(1, signalled(signal.SIGKILL)))
    assert killing.ended(children[1]) == -signal.SIGKILL
    assert killing.ended(children[0]) == 2
    line = only_error(tmp_path)
    assert re.match(r"error: another process of this run is gone; the same command goes on from what was saved", line)


def test_more_processes_than_images_in_a_batch_are_refused(start, tmp_path):
    assert ended(start(more=("DATALOADER.TRAIN_X.BATCH_SIZE", 1))) == [2, 2]
    line = only_error(tmp_path)
    assert line.startswith(
        "error: a batch of 1 cannot be shared by 2 processes; start fewer (--nproc), or give DATALOADER"
    )


def test_an_output_folder_in_use_is_one_line(start, tmp_path):
    def hold():
        with hold_folder(tmp_path / "out"):
            time.sleep(60)

    holder = killing.started(hold)
    while not (tmp_path / "out/.run.lock").exists():
        time.sleep(0.01)
    try:
        first, second = start()
        assert killing.ended(first) == 2
        os.kill(second, signal.SIGTERM)
        assert killing.ended(second) != 0
    finally:
        os.kill(holder, signal.SIGKILL)
        killing.ended(holder)
    assert re.match(rf'error: "{tmp_path}/out" is in use by process {holder} on ', only_error(tmp_path))


def test_a_test_alone_is_shared_too(start, tmp_path):
    assert ended(start(1, where="trained")) == [0]
    flags = ("--eval-only", "--model-dir", tmp_path / "trained", "--load-epoch", 3)
    for number in (1, 2):
        options = ("DATALOADER.TEST.BATCH_SIZE", 5)
        assert ended(start(number, where=f"by_{number}", flags=flags, more=options)) == [0] * number
    one, two = (np.load(tmp_path / f"by_{number}/predictions.npz") for number in (1, 2))
    for name in one.files:
        assert (one[name] == two[name]).all(), name


def test_processes_without_a_seed_share_one_order(start, tmp_path):
    def note(trainer, batch):
        (tmp_path / f"seen{rank()}").write_text("\n".join(batch["impath"]))

    assert ended(start(2, 2, note, more=("SEED", -1))) == [0, 0]
    seen = [(tmp_path / f"seen{number}").read_text().splitlines() for number in range(2)]
    assert [len(paths) for paths in seen] == [2, 2]
    assert len({*seen[0], *seen[1]}) == 4


def test_the_banner_of_one_process_says_nothing_of_processes(start, tmp_path, capsys):
    assert ended(start(1)) == [0]
    assert "nproc" not in printed(tmp_path)[0]
    with pytest.raises(SystemExit):
        train.main(["--nproc", "0"])
    assert "--nproc must be 1 or more, got 0" in capsys.readouterr().err


SCRIPT = """
import os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/trainers"]
import compat, colours, train
from trainers.coop import CoOp
step, steps = CoOp.forward_backward, [0]
def acting(self, batch):
    steps[0] += 1
    if steps[0] == 5 and os.environ["RANK"] == "1":
        {act}
    return step(self, batch)
CoOp.forward_backward = acting
train.collect_env_info = lambda: "a machine"
sys.exit(train.main(sys.argv[1:]))
"""
ENDS = {
    "raise OSError('the images are gone')": (2, "error: the images are gone\n"),
    "raise KeyError('a mistake in the code')": (1, "KeyError: 'a mistake in the code'\n"),
    "os.kill(os.getpid(), 9)": (
        137,
        "error: process 1 was ended by SIGKILL; the same command goes on from what was saved\n",
    ),
    "os.kill(os.getpid(), 15)": (143, ""),
    "os.kill(os.getppid(), 12)": (140, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("act", ENDS)
def test_the_launcher_ends_as_the_run_does(act, tmp_path):
    torch.save(tiny.clip_state(), tmp_path / "clip.pt")
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(Path(train.__file__).parent), act=act))
    words = [tmp_path / "script.py", "--root", tmp_path, "--trainer", "CoOp", "--output-dir", tmp_path / "out"]
    words += ["DATASET.NAME", "Colours", "MODEL.BACKBONE.NAME", tmp_path / "clip.pt", "INPUT.SIZE", "(32, 32)"]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.NUM_WORKERS", 2, "OPTIM.MAX_EPOCH", 3, "SEED", 1]
    words += ["TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.PREC", "fp32", "TRAIN.KEEP_MINUTES", 0.0, "USE_CUDA", False]
    code, line = ENDS[act]
    child = launched(lambda: launch(2, [str(word) for word in words]), tmp_path / "printed")
    assert killing.ended(child) == code
    said = (tmp_path / "printed").read_text()
    assert said.count("Traceback") == (code == 1)
    assert sum(text.startswith("error") for text in said.splitlines()) == line.startswith("error")
    assert line in said
    if code > 137:
        assert re.search(r"SIG\w+: stopped behind epoch 1 and \d batches of the next; saved in ", said)
