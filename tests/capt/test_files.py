"""Files are there whole or not at all, and nothing in a checkpoint is run."""

import json
import os
import pickle
import stat
import types

import pytest
import torch

from trainers.capt.run.files import checkpoint_file, read_checkpoint, write_atomically, write_json


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "er" / "run.json"

    def write(temporary):
        assert not path.exists()
        assert os.path.dirname(temporary) == str(path.parent)  # the same file system, so that a move is enough
        assert temporary.endswith(".json")
        with open(temporary, "w") as file:
            file.write("whole")

    write_atomically(path, write)
    assert path.read_text() == "whole"
    assert left_in(path.parent) == ["run.json"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["full disk", "interrupted"])
def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "run.json"
    path.write_text("old")

    def write(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert left_in(tmp_path) == ["run.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_as_readable_as_the_user_wants_them(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
        assert os.umask(umask) == umask  # and the umask is what it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == mode


def test_json_is_for_people(tmp_path):
    write_json(tmp_path / "a.json", {"name": "café", "n": [1, 2]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "café" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"name": "café", "n": [1, 2]}


def test_what_is_no_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert left_in(tmp_path) == []


# Finding


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    for epoch in (1, 2):
        (folder / f"model.pth.tar-{epoch}").write_bytes(b"")
    (folder / "checkpoint").write_text("model.pth.tar-2\n")
    return folder.parent


def test_the_last_epoch_where_no_best_one_is_kept(run):
    assert checkpoint_file(str(run), "model") == str(run / "model/model.pth.tar-2")


def test_the_best_epoch_comes_first(run):
    (run / "model/model-best.pth.tar").write_bytes(b"")
    assert checkpoint_file(str(run), "model") == str(run / "model/model-best.pth.tar")
    assert checkpoint_file(str(run), "model", 1) == str(run / "model/model.pth.tar-1")


@pytest.mark.parametrize("epoch", [None, 0])
def test_epoch_nought_is_none(run, epoch):
    assert checkpoint_file(str(run), "model", epoch).endswith("model.pth.tar-2")


def test_a_file_is_taken_as_it_is(run):
    path = str(run / "model/model.pth.tar-1")
    assert checkpoint_file(path, "whatever", 7) == path


def test_an_epoch_that_is_not_there(run):
    (run / "model/model.pth.tar-2.bank.safetensors").write_bytes(b"")  # belongs to one, is none
    with pytest.raises(FileNotFoundError, match=r"the folder holds \['model.pth.tar-1', 'model.pth.tar-2'\]"):
        checkpoint_file(str(run), "model", 3)


def test_no_run_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="it holds no checkpoint; train first"):
        checkpoint_file(str(tmp_path), "model")


# Reading

STATE = {"prompt_learner.ctx": torch.arange(6.0).reshape(2, 3)}


def test_weights_and_plain_values_come_back(tmp_path):
    torch.save({"state_dict": STATE, "epoch": 3, "val_result": 81.25}, tmp_path / "m")
    found = read_checkpoint(str(tmp_path / "m"))
    assert torch.equal(found["state_dict"]["prompt_learner.ctx"], STATE["prompt_learner.ctx"])
    assert (found["epoch"], found["val_result"]) == (3, 81.25)


def test_objects_beside_the_weights_are_left_inert(tmp_path):
    """Upstream Dassl pickles its scheduler; nothing of it is needed."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    own = types.SimpleNamespace(a=[1], b={"c": {2}})
    torch.save({"state_dict": STATE, "scheduler": scheduler, "own": own, "epoch": 3}, tmp_path / "m")
    found = read_checkpoint(str(tmp_path / "m"))
    assert torch.equal(found["state_dict"]["prompt_learner.ctx"], STATE["prompt_learner.ctx"])
    assert found["epoch"] == 3
    assert not isinstance(found["scheduler"], torch.optim.lr_scheduler.StepLR)
    assert not isinstance(found["own"], types.SimpleNamespace)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_run(tmp_path):
    marker = tmp_path / "marker"
    torch.save({"state_dict": STATE, "gift": Evil(marker)}, tmp_path / "m")
    found = read_checkpoint(str(tmp_path / "m"))
    assert torch.equal(found["state_dict"]["prompt_learner.ctx"], STATE["prompt_learner.ctx"])
    assert not marker.exists()
    torch.load(tmp_path / "m", weights_only=False)  # it would have been
    assert marker.is_dir()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps([1, 2], protocol=2), b"PK\x03\x04broken"])
def test_other_files_are_named(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match=r"/m\" (cannot be read as a checkpoint|is no Dassl checkpoint)"):
        read_checkpoint(str(tmp_path / "m"))


def test_a_cut_file_is_named(tmp_path):
    torch.save({"state_dict": STATE}, tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is the file complete"):
        read_checkpoint(str(tmp_path / "m"))


@pytest.mark.parametrize("content", [[1], {"weights": STATE}, {"state_dict": 3}])
def test_a_checkpoint_holds_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "m")
    with pytest.raises(ValueError, match="it holds no state_dict"):
        read_checkpoint(str(tmp_path / "m"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(str(tmp_path / "m"))
