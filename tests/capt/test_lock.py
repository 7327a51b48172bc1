"""An output folder belongs to one run: locks of living and dead processes, and folders that cannot be written."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import killing  # noqa: E402

import train  # noqa: E402
from trainers.capt.run.lock import NAME, FolderInUseError, hold_folder  # noqa: E402


@pytest.fixture
def held(tmp_path):
    """Process id of another process that holds ``<tmp_path>/run``."""

    def work():
        with hold_folder(tmp_path / "run"):
            (tmp_path / "is_held").touch()
            time.sleep(60)

    child = killing.started(work)
    while not (tmp_path / "is_held").exists():
        time.sleep(0.01)
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path):
    with hold_folder(tmp_path / "a" / "run"):
        holder = json.loads((tmp_path / "a/run" / NAME).read_text())
        assert (holder["host"], holder["process"]) == (socket.gethostname(), os.getpid())
    assert list((tmp_path / "a/run").iterdir()) == []


def test_one_run_may_hold_its_folder_twice(tmp_path):
    with hold_folder(tmp_path):
        with hold_folder(tmp_path / "." / "x" / ".."):
            pass
        assert (tmp_path / NAME).is_file()
    assert not (tmp_path / NAME).exists()


def test_it_goes_with_an_error_too(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path):
        raise KeyError
    with hold_folder(tmp_path):
        pass


def test_a_living_process_keeps_others_out(tmp_path, held):
    words = rf'"{tmp_path}/run" is in use by process {held} on {re.escape(socket.gethostname())} since .*; wait for it'
    for _ in range(2):  # to be refused must not undo the lock
        with pytest.raises(FolderInUseError, match=words), hold_folder(tmp_path / "run"):
            pass
    with hold_folder(tmp_path / "other"):
        pass


def test_a_dead_process_keeps_nobody_out(tmp_path):
    def work():
        hold = hold_folder(tmp_path)
        hold.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert killing.ended(killing.started(work)) == -signal.SIGKILL
    assert (tmp_path / NAME).is_file()
    with hold_folder(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


def test_a_child_that_lives_longer_keeps_nobody_out(tmp_path):
    """A loader's worker may outlive a run that was killed by seconds."""

    def work():
        hold = hold_folder(tmp_path)
        hold.__enter__()
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert killing.ended(killing.started(work)) == -signal.SIGKILL
    with hold_folder(tmp_path):
        pass


def test_of_many_at_once_one_gets_it(tmp_path):
    """However they start, removing of the file included: never two at a time."""

    def work():
        for _ in range(40):
            try:
                with hold_folder(tmp_path / "run"):
                    os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))
                    os.unlink(tmp_path / "inside")
            except FolderInUseError:
                pass

    children = [killing.started(work) for _ in range(4)]
    assert [killing.ended(child) for child in children] == [0] * 4


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_without_locks_of_the_file_system_the_holder_is_asked_for(tmp_path, no_locks, capsys):
    mark = tmp_path / NAME
    mark.write_text(json.dumps({"host": socket.gethostname(), "process": os.getppid()}))
    with pytest.raises(FolderInUseError, match=f"in use by process {os.getppid()} on"), hold_folder(tmp_path):
        pass
    dead = killing.started(lambda: 0)
    killing.ended(dead)
    for holder in ({"host": socket.gethostname(), "process": dead}, {"host": "other", "process": 1}, {}, [], "x"):
        mark.write_text(json.dumps(holder))
        with hold_folder(tmp_path):
            pass
        words = f"The file system has no locks: make sure that no other run uses {tmp_path}\n"
        assert capsys.readouterr().out == words


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.main(["--output-dir", str(tmp_path / "file" / "run"), "--trainer", "CoOp"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    words = f"error: Not a directory, so no run can use it; give another output folder: {tmp_path}/file/run"
    assert line == words


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_one_line(code, tmp_path, capsys, monkeypatch):
    """Simulated, since nothing is read-only to root."""

    def refuse(path, *args):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", refuse)
    assert train.main(["--output-dir", str(tmp_path), "--trainer", "CoOp"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {os.strerror(code)}, so no run can use it; give another output folder: {tmp_path}"


def test_a_disk_that_was_full_before_is_one_line_and_no_lock_stays(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    line = "No space left on device, so no run can use it; give another output folder"
    with pytest.raises(OSError, match=line) as caught, hold_folder(tmp_path / "run"):
        raise AssertionError("it was entered")
    assert caught.value.filename == str(tmp_path / "run")
    monkeypatch.undo()
    with hold_folder(tmp_path / "run"):
        pass
