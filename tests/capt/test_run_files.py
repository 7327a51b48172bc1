"""Files of a run: damage is noticed, whatever was hit; a full disk is one line, and what was there stays."""

import errno
import os
import random
import resource
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.utils import save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import killing  # noqa: E402

from trainers.capt.run import states  # noqa: E402
from trainers.capt.run.files import damage_of, read_checkpoint, save_tensors, write_atomically, write_json  # noqa: E402
from trainers.capt.run.states import (  # noqa: E402
    Position,
    StateWriter,
    drop_states,
    newest_state,
    rng_state,
    set_rng_state,
    states_in,
)

STATE = {"state_dict": {"a": torch.arange(60.0), "b": torch.ones(3, 5, dtype=torch.half)}, "epoch": 3}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "model.pth.tar-3"
    save_tensors(STATE, path)
    return path


def same(one, other):
    return one["epoch"] == other["epoch"] and all(
        torch.equal(one["state_dict"][name], value) for name, value in other["state_dict"].items()
    )


# ---- damage ----


def test_whole_files_have_none(stored, tmp_path):
    assert damage_of(stored) is None
    torch.save(STATE, tmp_path / "by torch")
    torch.save(STATE, tmp_path / "old", _use_new_zipfile_serialization=False)
    for name in ("by torch", "old"):
        assert damage_of(tmp_path / name) is None
        assert same(read_checkpoint(str(tmp_path / name)), STATE)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(stored, tmp_path_factory, data):
    """Times and paddings of an archive may change unseen; what is read from it may not."""
    content = bytearray(stored.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("changed") / "model.pth.tar-3"
    path.write_bytes(content)
    try:
        found = read_checkpoint(str(path))
    except ValueError as error:
        assert "cannot be read as a checkpoint" in str(error)  # noqa: PT017 - which of the two depends on the place
    else:
        assert same(found, STATE)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_noticed(stored, tmp_path, share):
    content = stored.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    assert damage_of(tmp_path / "cut")


def test_a_changed_weight_is_noticed(stored, tmp_path):
    """torch itself reads it without a word."""
    content = bytearray(stored.read_bytes())
    content[content.index(torch.arange(60.0).numpy().tobytes()) + 7] ^= 64
    (tmp_path / "changed").write_bytes(content)
    assert not same(torch.load(tmp_path / "changed", weights_only=True), STATE)
    assert "the checksum of archive/data/0 does not fit" in damage_of(tmp_path / "changed")
    with pytest.raises(ValueError, match="the checksum of archive/data/0 does not fit"):
        read_checkpoint(str(tmp_path / "changed"))


def test_equal_contents_are_equal_bytes(stored, tmp_path):
    save_tensors(STATE, tmp_path / "of another name")
    assert (tmp_path / "of another name").read_bytes() == stored.read_bytes()


# ---- states ----


def write_state(run, position, content, keep):
    with StateWriter(run, keep) as writer:
        return writer.write(position, content)


def test_states_come_in_order_and_the_last_are_kept(tmp_path):
    for position in ((2, 9), (10, 0), (2, 11), (9, 100000)):
        write_state(tmp_path, Position(*position), {"at": position}, keep=9)
    assert [tuple(position) for position, _ in states_in(tmp_path)] == [(10, 0), (9, 100000), (2, 11), (2, 9)]
    write_state(tmp_path, Position(10, 1), {"at": (10, 1)}, keep=2)
    assert [tuple(position) for position, _ in states_in(tmp_path)] == [(10, 1), (10, 0)]
    write_state(tmp_path, Position(10, 2), {"at": (10, 2)}, keep=0)  # never none
    found = newest_state([tmp_path])
    assert (found.position, found.content["at"], len(states_in(tmp_path))) == ((10, 2), (10, 2), 1)
    drop_states(tmp_path)
    assert newest_state([tmp_path, tmp_path / "nowhere"]) is None
    assert list(tmp_path.iterdir()) == []


def test_a_state_outlives_a_kill_before_the_disk_has_it_and_older_ones_stay_until_then(tmp_path, monkeypatch):
    for epoch in (1, 2):
        write_state(tmp_path, Position(epoch, 0), {}, keep=2)
    is_synced = threading.Event()
    monkeypatch.setattr(states, "sync_file", lambda path: is_synced.wait(60))
    with StateWriter(tmp_path, keep=1) as writer:
        writer.write(Position(3, 0), {})
        assert newest_state([tmp_path]).position == (3, 0)
        assert len(states_in(tmp_path)) == 3
        is_synced.set()
        writer.settle()
        assert [position for position, _ in states_in(tmp_path)] == [(3, 0)]


def test_a_disk_that_refuses_late_is_told_and_what_was_there_stays(tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    writer = StateWriter(tmp_path, keep=1)
    writer.write(Position(1, 0), {})
    writer.settle()
    monkeypatch.setattr(states, "sync_file", refuse)
    path = writer.write(Position(2, 0), {})
    with pytest.raises(OSError, match="what was saved before is still there") as caught:
        writer.write(Position(3, 0), {})
    assert (caught.value.errno, caught.value.filename) == (errno.EDQUOT, str(path))
    assert [position for position, _ in states_in(tmp_path)] == [(1, 0)]
    writer.settle()  # it is told once


def test_random_states_come_back(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.random()  # noqa: NPY002

    np.random.standard_normal()  # noqa: NPY002 - leaves the second of a pair waiting
    write_state(tmp_path, Position(1, 0), {"rng": rng_state()}, keep=1)
    first = [draw() for _ in range(2)]
    for _ in range(2):  # to be set must not change what was read
        set_rng_state(newest_state([tmp_path]).content["rng"])
        assert [draw() for _ in range(2)] == first


# ---- a full disk ----


def on_a_full_disk(work, limit=3000):
    """What ``work`` raises where no file may grow beyond ``limit`` bytes, as type, number, file and message."""
    reader, writer = os.pipe()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            work()
        except OSError as error:
            os.write(writer, f"{error.errno}|{error.filename}|{error.strerror}".encode())
            return 0
        return 3

    assert killing.ended(killing.started(limited)) == 0
    os.close(writer)
    with os.fdopen(reader) as pipe:
        number, name, message = pipe.read().split("|")
    return int(number), name, message


BIG = {"weights": torch.zeros(5000)}
WRITERS = {
    "a state": lambda path: save_tensors(BIG, path),
    "safetensors": lambda path: write_atomically(path, lambda part: save_file(BIG, part)),
    "JSON": lambda path: write_json(path, "x" * 9000),
    "a checkpoint": lambda path: save_checkpoint({"state_dict": BIG, "epoch": 1}, path.parent, model_name=path.name),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_names_the_file_and_leaves_what_was_there(what, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    number, name, message = on_a_full_disk(lambda: WRITERS[what](path))
    assert (number, name) == (errno.EFBIG, str(path))
    assert message == f"{os.strerror(errno.EFBIG)}; what was saved before is still there"
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_errors_of_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "to", lambda part: shutil.copyfile(tmp_path / "from", part))
    assert caught.value.filename == str(tmp_path / "from")
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "to", lambda part: 1 / 0)
    assert list(tmp_path.iterdir()) == []
