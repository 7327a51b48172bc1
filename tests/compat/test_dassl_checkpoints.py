"""Checkpoint files: whole or not at all, plain, and safe to read."""

import os
import pickle
import signal
import warnings
from pathlib import Path

import compat

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

pytestmark = pytest.mark.skipif(compat.DASSL != "bundled", reason="an installed Dassl is in use")


def state(epoch, value=0.0):
    return {
        "state_dict": {"module.weight": torch.full((2,), value)},
        "epoch": epoch,
        "optimizer": None,
        "scheduler": None,
        "val_result": None,
    }


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def test_save_load_and_pointer(tmp_path, capsys):
    save_checkpoint(state(3), str(tmp_path))
    save_checkpoint(state(4), str(tmp_path), is_best=True)
    assert names(tmp_path) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-3", "model.pth.tar-4"]
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-4\n"
    assert capsys.readouterr().out == (
        f"Checkpoint saved to {tmp_path}/model.pth.tar-3\n"
        f"Checkpoint saved to {tmp_path}/model.pth.tar-4\n"
        f'Best checkpoint saved to "{tmp_path}/model-best.pth.tar"\n'
    )
    loaded = load_checkpoint(str(tmp_path / "model.pth.tar-4"))
    assert list(loaded["state_dict"]) == ["weight"]
    assert loaded["epoch"] == 4


def test_load_errors(tmp_path, capsys):
    with pytest.raises(ValueError, match="File path is None"):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match='File is not found at "nowhere"'):
        load_checkpoint("nowhere")
    save_checkpoint(state(3), str(tmp_path))
    path = tmp_path / "model.pth.tar-3"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(pickle.UnpicklingError, match="is damaged"):
        load_checkpoint(str(path))
    assert f'Unable to load checkpoint from "{path}"' in capsys.readouterr().out


def half_a_file(checkpoint, file):
    file.write(b"half")
    file.flush()


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(state(3, 1.0), str(tmp_path))

    def fail(checkpoint, path):
        half_a_file(checkpoint, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(state(3, 2.0), str(tmp_path))
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint", "model.pth.tar-3"]
    assert load_checkpoint(str(tmp_path / "model.pth.tar-3"))["state_dict"]["weight"].tolist() == [1.0, 1.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(state(3, 1.0), str(tmp_path))

    def killed(checkpoint, path):
        half_a_file(checkpoint, path)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(torch, "save", killed)
    child = os.fork()
    if child == 0:
        save_checkpoint(state(3, 2.0), str(tmp_path))
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    monkeypatch.undo()
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(2))
    assert resume_from_checkpoint(str(tmp_path), model) == 3
    assert model.weight.tolist() == [1.0, 1.0]
    save_checkpoint(state(4), str(tmp_path))  # what the killed process left is in nobody's way


def warm_up(**values):
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.LR_SCHEDULER, cfg.MAX_EPOCH, cfg.WARMUP_EPOCH = "sgd", 1.0, "cosine", 6, 1
    cfg.WARMUP_TYPE = "constant"
    for key, value in values.items():
        cfg[key] = value
    model = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(model, cfg)
    return model, optimizer, build_lr_scheduler(optimizer, cfg)


def advance(optimizer, scheduler, epochs):
    """Rates of the epochs gone through."""
    result = []
    for _ in range(epochs):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def saved(model, optimizer, scheduler_state, epoch, folder):
    checkpoint = {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler_state,
        "val_result": None,
    }
    save_checkpoint(checkpoint, str(folder))


def old_style(scheduler):
    """What Dassl stores: a dict with the successor as an object."""
    return {key: value for key, value in vars(scheduler).items() if key != "optimizer"}


@pytest.mark.parametrize("schedule", ["cosine", "multi_step", "single_step"])
def test_checkpoints_load_with_weights_only(tmp_path, schedule):
    model, optimizer, scheduler = warm_up(LR_SCHEDULER=schedule, STEPSIZE=(2, 4))
    advance(optimizer, scheduler, 3)
    saved(model, optimizer, scheduler.state_dict(), 3, tmp_path)
    loaded = torch.load(tmp_path / "model.pth.tar-3", weights_only=True)
    assert list(loaded) == ["state_dict", "epoch", "optimizer", "scheduler", "val_result"]
    assert isinstance(loaded["scheduler"]["successor"], dict)


@pytest.mark.parametrize("kind", ["plain", "old-style"])
def test_resume_with_warm_up_follows_the_schedule(tmp_path, capsys, kind):
    model, optimizer, scheduler = warm_up()
    advance(optimizer, scheduler, 3)
    scheduler_state = scheduler.state_dict() if kind == "plain" else old_style(scheduler)
    saved(model, optimizer, scheduler_state, 3, tmp_path)
    capsys.readouterr()
    other, optimizer, scheduler = warm_up()
    assert resume_from_checkpoint(str(tmp_path), other, optimizer, scheduler) == 3
    assert capsys.readouterr().out == (
        f'Loading checkpoint from "{tmp_path}/model.pth.tar-3"\n'
        "Loaded model weights\nLoaded optimizer\nLoaded scheduler\nPrevious epoch: 3\n"
    )
    assert torch.equal(other.weight, model.weight)
    assert scheduler.successor.optimizer is optimizer
    assert advance(optimizer, scheduler, 3) == pytest.approx([0.75, 0.5, 0.25])


def test_resume_takes_the_schedule_from_the_configuration(tmp_path):
    model, optimizer, scheduler = warm_up(MAX_EPOCH=3)
    advance(optimizer, scheduler, 3)
    saved(model, optimizer, scheduler.state_dict(), 3, tmp_path)
    model, optimizer, scheduler = warm_up(MAX_EPOCH=6)
    resume_from_checkpoint(str(tmp_path), model, optimizer, scheduler)
    assert advance(optimizer, scheduler, 3) == pytest.approx([0.75, 0.5, 0.25])


def test_resume_without_warm_up_extends_a_finished_cosine(tmp_path):
    model, optimizer, scheduler = warm_up(MAX_EPOCH=3, WARMUP_EPOCH=-1)
    advance(optimizer, scheduler, 3)
    saved(model, optimizer, scheduler.state_dict(), 3, tmp_path)
    model, optimizer, scheduler = warm_up(MAX_EPOCH=6, WARMUP_EPOCH=-1)
    resume_from_checkpoint(str(tmp_path), model, optimizer, scheduler)
    assert type(scheduler) is CosineAnnealingLR
    assert advance(optimizer, scheduler, 2) == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "radam"])
def test_old_style_files_are_read_with_inert_objects(tmp_path, name, zipped):
    cfg = get_cfg_default().OPTIM
    cfg.NAME = name
    model = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(model, cfg)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    successor = MultiStepLR(optimizer, [2, 4])
    path = tmp_path / "old.pth.tar"
    content = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": successor},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(str(path))
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)
    assert type(loaded["scheduler"]["successor"]).__name__ == "InertObject"
    assert loaded["scheduler"]["successor"].last_epoch == 0
    assert loaded["optimizer"]["state"].keys() == optimizer.state_dict()["state"].keys()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_runs_nothing(tmp_path, zipped):
    path, marker = tmp_path / "evil.pth.tar", tmp_path / "marker"
    torch.save({"state_dict": {}, "scheduler": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        pickle.UnpicklingError, match=r"needs \w+\.system to be loaded, which is not a known part"
    ) as info:
        load_checkpoint(str(path))
    assert "\n" not in str(info.value)
    assert not marker.exists()


def test_a_torchscript_archive_is_not_run(tmp_path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; archives made with it are not rare
        torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(pickle.UnpicklingError, match="is a TorchScript archive"):
        load_checkpoint(str(path))


def test_missing_pointer_takes_the_latest_epoch_and_says_so(tmp_path, capsys):
    save_checkpoint(state(9, 9.0), str(tmp_path))
    save_checkpoint(state(10, 10.0), str(tmp_path))
    (tmp_path / "checkpoint").unlink()
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(2))
    assert resume_from_checkpoint(str(tmp_path), model) == 10
    assert "taking the latest epoch" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="No checkpoint in"):
        resume_from_checkpoint(str(tmp_path / "nowhere"), model)


def test_load_pretrained_weights(tmp_path, capsys):
    model = torch.nn.Linear(2, 1)
    path = str(tmp_path / "w.pth")
    content = {"module.weight": torch.ones(1, 2), "bias": torch.ones(3), "other": torch.ones(1)}
    torch.save({"state_dict": content}, path)
    assert load_pretrained_weights(model, path) is None
    assert model.weight.tolist() == [[1.0, 1.0]]
    assert capsys.readouterr().out == (
        f"Successfully loaded pretrained weights from {path}\n"
        "Layers discarded due to unmatched keys or size: ['bias', 'other']\n"
    )
    torch.save({"x": torch.ones(1)}, path)
    with pytest.warns(UserWarning, match=r"Cannot load .* \(check the key names manually\)"):
        load_pretrained_weights(model, path)
