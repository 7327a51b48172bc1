"""What a run goes on from: damaged, foreign and lacking states and checkpoints, and what a loss that is NaN leaves."""

import shutil

import pytest
import torch
from stopping import same_files, stop_in, stopped

from trainers.capt.run.interruption import _is_finite


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


@pytest.mark.parametrize("name", ["MaPLe", "PromptSRC"])
def test_a_checkpoint_alone_is_enough(name, build, tmp_path):
    """As where a run is killed between a checkpoint and the state of that epoch."""
    options = ["TRAIN.CHECKPOINT_FREQ", 1]
    build(name, "straight", *options).train()
    stopped(stop_in(build(name, "again", *options), 2, 0))
    shutil.rmtree(tmp_path / "again/out/resume")
    trainer = build(name, "again", *options)
    trainer.train()
    assert trainer.start_epoch == 2
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


def test_nothing_saved_before_a_loss_that_is_no_number(build):
    with pytest.raises(FloatingPointError, match="In epoch 1, batch 1, the loss is nan; nothing was saved before it"):
        spoil(build("CoOp", "nan"), 0, 0, "prompt_learner.ctx").train()


def test_what_is_no_number_never_becomes_a_state(build, tmp_path):
    trainer = build("CoOp", "nan")
    trainer.detect_anomaly = lambda loss: None  # as a loss that is looked at now and then
    with pytest.raises(FloatingPointError, match="prompt_learner.ctx|ctx is no number any more"):
        stop_in(spoil(trainer, 0, 1, "prompt_learner.ctx"), 0, 1).train()
    assert not (tmp_path / "nan/out/resume").exists()


@pytest.mark.parametrize(
    ("values", "is_finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # finite, and too large for their sum
        ([3e38, -3e38, 3e38, 3e38], True),
        ([1.0, float("nan")], False),
        ([float("inf"), 1.0], False),
        ([float("inf"), float("-inf")], False),
        ([], True),
    ],
)
def test_what_is_finite(values, is_finite):
    for dtype in (torch.float32, torch.bfloat16):
        assert _is_finite(torch.tensor(values, dtype=dtype)) == is_finite
