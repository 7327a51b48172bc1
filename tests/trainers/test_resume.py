"""Runs that a signal stops go on with the same command and end with the bytes of a run that nothing stopped."""

import multiprocessing
import shutil
import signal
import time

import pytest
from stopping import METHODS, same_files, stop_behind, stop_in, stopped

from trainers.capt.run.shares import end_workers
from trainers.capt.run.signals import SIGNALS
from trainers.coop import CoOp


@pytest.mark.parametrize("name", METHODS)
def test_stopped_in_an_epoch_and_behind_one(name, build, tmp_path, capsys):
    build(name, "straight").train()
    capsys.readouterr()
    if name != "TipAdapter":  # which takes no steps
        stopped(stop_in(build(name, "stopped"), 0, 1))
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SIGTERM")]
        state = tmp_path / "stopped/out/resume/epoch_0000_batch_00002.pt"
        assert line == (
            "SIGTERM: stopped behind epoch 0 and 2 batches of the next; "
            f'saved in "{state}"; the same command goes on from there'
        )
        assert state.is_file()
    stopped(stop_behind(build(name, "stopped"), "after_epoch", 1))
    trainer = build(name, "stopped")
    trainer.train()
    assert trainer.start_epoch == 1
    same_files(tmp_path / "straight/out", tmp_path / "stopped/out")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "TipAdapter"])
def test_stopped_at_every_step(name, workers, build, tmp_path):
    options = ["DATALOADER.NUM_WORKERS", workers, "TEST.FINAL_MODEL", "best_val"]
    build(name, "straight", *options).train()
    for epoch in range(3):
        for batch in range(3):
            stopped(stop_in(build(name, "stopped", *options), epoch, batch))
    build(name, "stopped", *options).train()
    same_files(tmp_path / "straight/out", tmp_path / "stopped/out")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_no_worker_outlives_a_run(is_stopped, build):
    """Signals do not reach them, so a process with one left would wait for it without end when it exits."""
    before = set(multiprocessing.active_children())
    trainer = build("CoOp", "run", "DATALOADER.NUM_WORKERS", 2, "TEST.FINAL_MODEL", "best_val")
    if is_stopped:
        stopped(stop_in(trainer, 1, 0))
    else:
        trainer.train()
    assert set(multiprocessing.active_children()) == before
    trainer.test()  # workers are started anew where they are needed
    for loader in trainer._loaders():
        end_workers(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_in_the_validation_of_an_epoch(workers, build, tmp_path, capsys):
    """The steps of the epoch are kept, and its validation is done again, before and behind the best epoch's file."""
    options = ["TEST.FINAL_MODEL", "best_val", "DATALOADER.NUM_WORKERS", workers]
    build("IVLP", "straight", *options).train()
    for hook, times in (("parse_batch_test", 1), ("save_model", 1), ("test", 1)):
        capsys.readouterr()
        stopped(stop_behind(build("IVLP", "stopped", *options), hook, times))
        assert "SIGTERM: stopped behind epoch 0 and 3 batches of the next; saved in" in capsys.readouterr().out
    build("IVLP", "stopped", *options).train()
    same_files(tmp_path / "straight/out", tmp_path / "stopped/out")


def test_stopped_in_the_last_test(build, tmp_path, capsys):
    build("CoOp", "straight").train()
    stopped(stop_behind(build("CoOp", "stopped"), "parse_batch_test", 1))
    assert "SIGTERM: stopped behind the last epoch; the same command tests what was trained" in capsys.readouterr().out
    trainer = stop_behind(build("CoOp", "stopped"), "parse_batch_test", 1)
    stopped(trainer)
    assert "stopped behind the last epoch" in capsys.readouterr().out
    build("CoOp", "stopped").train()
    assert trainer.start_epoch == 3
    same_files(tmp_path / "straight/out", tmp_path / "stopped/out")


def test_stopped_before_anything(build, tmp_path, capsys):
    stopped(stop_behind(build("CoOp", "stopped"), "resume_model_if_exist", 1))
    assert "SIGTERM: stopped before there was anything to save; give the same command again" in capsys.readouterr().out
    assert not (tmp_path / "stopped/out/resume").exists()


@pytest.mark.parametrize("signum", SIGNALS)
def test_every_signal_has_its_code_and_handlers_are_given_back(signum, build):
    before = signal.signal(signum, lambda *_: None)
    try:
        mine = {s: signal.getsignal(s) for s in SIGNALS}
        stopped(stop_in(build("CoOp", "stopped"), 0, 0, signum), 128 + signum)
        assert {s: signal.getsignal(s) for s in SIGNALS} == mine
        build("CoOp", "stopped").train()
        assert {s: signal.getsignal(s) for s in SIGNALS} == mine
    finally:
        signal.signal(signum, before)


def test_an_ignored_signal_stays_ignored(build):
    """As SIGINT is for commands that a script puts into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop_in(build("CoOp", "ignoring"), 0, 0, signal.SIGINT).train()
    finally:
        signal.signal(signal.SIGINT, before)


def test_states_are_as_many_and_as_rare_as_configured(build, tmp_path, monkeypatch):
    folder = tmp_path / "kept/out/resume"

    def left(*options):
        shutil.rmtree(folder.parent, ignore_errors=True)
        stopped(stop_in(build("CoOp", "kept", "OPTIM.MAX_EPOCH", 5, *options), 3, 0))
        return sorted(path.name for path in folder.iterdir())

    assert left() == ["epoch_0003_batch_00000.pt", "epoch_0003_batch_00001.pt"]
    assert left("TRAIN.KEEP", 1) == ["epoch_0003_batch_00001.pt"]
    assert len(left("TRAIN.KEEP", 9)) == 4
    assert left("TRAIN.KEEP_MINUTES", 60.0) == ["epoch_0003_batch_00001.pt"]
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(CoOp, "before_epoch", later(CoOp.before_epoch, clock, 40))
    names = ["epoch_0002_batch_00000.pt", "epoch_0003_batch_00001.pt"]
    assert left("TRAIN.KEEP_MINUTES", 1.0, "TRAIN.KEEP", 9) == names
    # 2 % of the time: the first state takes 1 s, and the next ones wait for 50
    monkeypatch.setattr(CoOp, "run_state", later(CoOp.run_state, clock, 1))
    names = [f"epoch_000{epoch}_batch_0000{batch}.pt" for epoch, batch in ((1, 0), (3, 0), (3, 1))]
    assert left("TRAIN.KEEP_MINUTES", -1.0, "TRAIN.KEEP", 9) == names


def later(method, clock, seconds):
    """The method, which takes so long by this clock."""

    def slow(self):
        clock[0] += seconds
        return method(self)

    return slow
