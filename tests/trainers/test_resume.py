"""Runs that a signal stops go on with the same command and end with the bytes of a run that nothing stopped."""

import json
import multiprocessing
import os
import shutil
import signal
import time

import colours
import pytest
import tiny
import torch

from trainers.capt.run.signals import SIGNALS, Interrupted
from trainers.coop import CoOp

DEEP = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2}
METHODS = {
    "CoOp": {"N_CTX": 4},
    "CoCoOp": {"CTX_INIT": "a photo of a"},
    "MaPLe": {"PROMPT_DEPTH": 2},
    "IVLP": DEEP,
    "VPT": {"N_CTX_VISION": 2},
    "PromptSRC": DEEP,
    "PromptKD": {"PROMPT_DEPTH_VISION": 2},
    "LinearProbe": None,
    "CLIPAdapter": None,
    "TipAdapter": None,
    "TipAdapterF": None,
}
# Draws from all generators in the main process, and a schedule with a warm-up in front.
RANDOM = ["INPUT.TRANSFORMS", ("random_flip", "normalize"), "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant"]


@pytest.fixture(scope="session")
def clip(clip_path):
    """The small CLIP's file, and the keys that name PromptKD's teacher."""
    return clip_path, tiny.save_teacher(clip_path.parent / "teacher")


@pytest.fixture
def build(tmp_path, clip):
    """``build(name, where, options)``: a trainer whose folder is ``<tmp_path>/<where>/out``."""
    path, teacher = clip

    def build_one(name, where, *options):
        folder = tmp_path / where
        folder.mkdir(exist_ok=True)
        keys = (teacher if name == "PromptKD" else {}) | (METHODS[name] or {})
        common = ["DATASET.ROOT", str(tmp_path), "TRAINER.MODAL", "cross", "TRAIN.KEEP_MINUTES", 0.0]
        options = [*RANDOM, *common, *options]
        return colours.build(folder, path, name, keys, options)

    return build_one


def stop_in(trainer, epoch, batch, signum=signal.SIGTERM):
    """Let the signal come in the middle of a step."""
    step = trainer.forward_backward

    def stopped(data):
        if (trainer.epoch, trainer.batch_idx) == (epoch, batch):
            os.kill(os.getpid(), signum)
        return step(data)

    trainer.forward_backward = stopped
    return trainer


def stop_behind(trainer, hook, times):
    """Let the signal come when a method of the trainer has been through so many times."""
    method, left = getattr(trainer, hook), [times]

    def stopped(*args, **kwargs):
        result = method(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(trainer, hook, stopped)
    return trainer


def stopped(trainer, code=128 + signal.SIGTERM):
    """Train until the signal; the exit code must tell which."""
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.code == code
    return trainer


def same_files(one, other):
    """Checkpoints and predictions are equal byte by byte, records but for times and folders; nothing else is there."""
    for folder in (one, other):
        assert not (folder / "resume").exists()
    named = [
        sorted(p.relative_to(f).as_posix() for p in f.rglob("*") if "tensorboard" not in p.parts) for f in (one, other)
    ]
    assert named[0] == named[1]
    for name in named[0]:
        if (one / name).is_dir() or name == "results.json":
            continue
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert record(one) == record(other)


def record(folder):
    found = json.loads((folder / "results.json").read_text())
    for key in ("seconds", "images_per_second_test", "num_encoded_before", "peak_memory_mb"):
        del found[key]
    del found["config"]["OUTPUT_DIR"]
    return found


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


@pytest.mark.parametrize("damage", ["cut", "altered", "emptied"])
def test_a_damaged_state_is_named_and_the_one_before_it_taken(damage, build, tmp_path, capsys):
    build("MaPLe", "straight").train()
    stopped(stop_in(build("MaPLe", "stopped"), 2, 1))
    path = tmp_path / "stopped/out/resume/epoch_0002_batch_00002.pt"
    damaged(path, damage)
    capsys.readouterr()
    build("MaPLe", "stopped").train()
    out = capsys.readouterr().out
    assert f'"{path}" is damaged (' in out
    assert 'Resuming behind epoch 2 from "' in out
    same_files(tmp_path / "straight/out", tmp_path / "stopped/out")


def damaged(path, how):
    content = bytearray(path.read_bytes())
    if how == "altered":
        content[content.index(torch.load(path, weights_only=True)["start"]["torch"].numpy().tobytes()) + 40] ^= 1
    path.write_bytes({"cut": content[:-100], "altered": content, "emptied": b""}[how])


@pytest.mark.parametrize("damage", ["cut", "emptied", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(damage, build, tmp_path, capsys):
    options = ["TRAIN.CHECKPOINT_FREQ", 1]
    build("CoOp", "straight", *options).train()
    shutil.copytree(tmp_path / "straight", tmp_path / "again")
    path = tmp_path / "again/out/prompt_learner/model.pth.tar-3"
    path.unlink() if damage == "gone" else damaged(path, damage)
    capsys.readouterr()
    trainer = build("CoOp", "again", *options)
    trainer.train()
    assert trainer.start_epoch == 2
    assert f'"{path}" is damaged (' in capsys.readouterr().out
    same_files(tmp_path / "straight/out", tmp_path / "again/out")


def test_every_checkpoint_damaged_starts_from_scratch(build, tmp_path, capsys):
    build("CoOp", "straight").train()
    shutil.copytree(tmp_path / "straight", tmp_path / "again")
    damaged(tmp_path / "again/out/prompt_learner/model.pth.tar-3", "cut")
    trainer = build("CoOp", "again")
    trainer.train()
    assert trainer.start_epoch == 0
    assert "No checkpoint found, train from scratch" in capsys.readouterr().out


def test_a_state_of_another_run_is_refused(build, tmp_path):
    stopped(stop_in(build("MaPLe", "stopped"), 0, 0))
    model = build("MaPLe", "stopped")
    del model.model.prompt_learner.proj
    with pytest.raises(ValueError, match=r"is of another run: prompt_learner.proj.weight differs"):
        model.train()


def test_a_state_of_newer_code_is_refused(build, tmp_path):
    stopped(stop_in(build("CoOp", "stopped"), 0, 0))
    path = tmp_path / "stopped/out/resume/epoch_0000_batch_00001.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"format": 9}, path)
    with pytest.raises(ValueError, match="has format 9, this code reads up to 1; update it"):
        build("CoOp", "stopped").train()


def test_a_folder_to_resume_from_counts_as_long_as_it_is_further(build, tmp_path):
    """``--resume`` is given again with the same command, when the output folder has states of its own."""
    build("CoOp", "straight").train()
    stopped(stop_in(build("CoOp", "first"), 0, 2))
    options = ["RESUME", str(tmp_path / "first/out")]
    stopped(stop_in(build("CoOp", "second", *options), 1, 1))
    trainer = build("CoOp", "second", *options)
    trainer.train()
    assert trainer.start_epoch == 1
    one, other = (tmp_path / name / "out/prompt_learner/model.pth.tar-3" for name in ("straight", "second"))
    assert one.read_bytes() == other.read_bytes()


def test_states_leave_the_frozen_weights_out(build, tmp_path):
    trainer = stopped(stop_in(build("MaPLe", "stopped"), 0, 0))
    (path,) = (tmp_path / "stopped/out/resume").iterdir()
    (state,) = torch.load(path, weights_only=True)["models"].values()
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in trainer.model.named_buffers()} & trainer.model.state_dict().keys()
    assert set(state["weights"]) == trained | buffers


# ---- a loss that is no number ----


def spoil(trainer, epoch, batch, key):
    """From this step on one weight is NaN."""
    step = trainer.forward_backward

    def spoiled(data):
        if (trainer.epoch, trainer.batch_idx) == (epoch, batch):
            with torch.no_grad():
                dict(trainer.model.named_parameters())[key].fill_(float("nan"))
        return step(data)

    trainer.forward_backward = spoiled
    return trainer


@pytest.mark.parametrize(
    ("name", "key", "terms"),
    [
        ("CoOp", "prompt_learner.ctx", "the loss is nan"),
        (
            "PromptSRC",
            "prompt_learner.ctx",
            "cross-entropy is nan, agreement of texts is nan, agreement of logits is nan",
        ),
        (
            "PromptSRC",
            "image_encoder.VPT",
            "cross-entropy is nan, agreement of images is nan, agreement of logits is nan",
        ),
    ],
)
def test_a_loss_that_is_no_number_says_where_which_and_what_is_kept(name, key, terms, build, tmp_path):
    with pytest.raises(FloatingPointError) as caught:
        spoil(build(name, "nan"), 1, 2, key).train()
    kept = tmp_path / "nan/out/resume/epoch_0001_batch_00000.pt"
    assert str(caught.value) == (
        f"Loss is infinite or NaN! In epoch 2, batch 3, {terms}; the last good checkpoint, behind epoch 1, is kept in "
        f'"{kept}"; lower OPTIM.LR'
    )
    assert kept.is_file()


def test_no_worker_outlives_a_training_that_fails(build):
    """They take no signal: a process that waits for them at its end, as multiprocessing does, would wait for ever."""
    trainer = build("CoOp", "nan", "DATALOADER.NUM_WORKERS", 2)
    there = []
    trainer.after_epoch = lambda: there.extend(multiprocessing.active_children())
    with pytest.raises(FloatingPointError):
        spoil(trainer, 1, 0, "prompt_learner.ctx").train()
    assert len(there) == 2
    assert not any(worker.is_alive() for worker in there)


def test_nothing_saved_before_a_loss_that_is_no_number(build):
    with pytest.raises(FloatingPointError, match="In epoch 1, batch 1, the loss is nan; nothing was saved before it"):
        spoil(build("CoOp", "nan"), 0, 0, "prompt_learner.ctx").train()


def test_what_is_no_number_never_becomes_a_state(build, tmp_path):
    trainer = build("CoOp", "nan")
    trainer.detect_anomaly = lambda loss: None  # as a loss that is looked at now and then
    with pytest.raises(FloatingPointError, match="prompt_learner.ctx|ctx is no number any more"):
        stop_in(spoil(trainer, 0, 1, "prompt_learner.ctx"), 0, 1).train()
    assert not (tmp_path / "nan/out/resume").exists()
