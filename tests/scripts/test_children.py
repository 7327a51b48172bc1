"""Signals to a script reach what it runs, each once; nothing is started after them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from capt_tools.plan import children
from capt_tools.plan.children import call, forwarding, stop_signal
from capt_tools.plan.script import exit_code
from capt_tools.plan.steps import StopError

ROOT = Path(__file__).resolve().parents[2]
# Notes every signal, ends at the second one or half a second after the first.
NOTES = """
import signal, sys, time
got = []
def note(number, frame):
    got.append(number)
    open(sys.argv[1], "a").write(f"{number} ")
    if len(got) > 1: sys.exit(99)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2): signal.signal(number, note)
open(sys.argv[1], "a").write("ready ")
for _ in range(100):
    time.sleep(0.05)
    if got: time.sleep(0.5); sys.exit(128 + got[0])
"""
# A script that runs NOTES twice.
SCRIPT = """
import sys
from capt_tools.plan.runner import Runner
from capt_tools.plan.script import exit_code
from capt_tools.plan.settings import Settings
def work():
    for _ in range(2):
        Runner(Settings()).start([sys.executable, "-c", sys.argv[1], sys.argv[2]])
    return 0
sys.exit(exit_code(work))
"""


@pytest.fixture
def script(tmp_path):
    """Starts SCRIPT and waits until its first run is ready; gives the process and the file of the run's notes."""
    notes, started = tmp_path / "notes", []

    def start(prefix=()):
        command = [*prefix, sys.executable, "-c", SCRIPT, NOTES, str(notes)]
        started.append(subprocess.Popen(command, cwd=ROOT, start_new_session=True))
        while not notes.exists() or "ready" not in notes.read_text():
            assert started[-1].poll() is None
            time.sleep(0.02)
        return started[-1], notes

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ("SIGINT", "SIGINT"),
        ("SIGTERM", "SIGTERM"),
        ("SIGUSR1", "SIGUSR1"),
        ("SIGUSR2", "SIGUSR2"),
        ("SIGHUP", "SIGTERM"),
    ],
)
def test_a_signal_reaches_the_run_once_and_nothing_more_is_started(sent, got, script):
    process, notes = script()
    os.killpg(process.pid, signal.Signals[sent])  # as a terminal sends it: to the whole group
    assert process.wait(10) == 128 + signal.Signals[got]
    assert notes.read_text().split() == ["ready", str(int(signal.Signals[got]))]


def test_a_second_signal_is_passed_on_too(script):
    process, notes = script()
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 99
    assert notes.read_text().split() == ["ready", "2", "2"]


def test_what_nohup_ignores_stays_ignored(script):
    process, notes = script(("nohup",))
    os.killpg(process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    assert notes.read_text().split() == ["ready"]


def test_a_signal_while_nothing_runs_stops_at_once():
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        assert exit_code(lambda: signal.raise_signal(number)) == 128 + number  # noqa: B023
        assert signal.getsignal(number) is before
        assert stop_signal() is None


def test_after_a_signal_nothing_is_started(tmp_path):
    def work():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        assert call([sys.executable, "-c", NOTES, str(tmp_path / "notes")], os.environ) < 0 or stop_signal()
        assert stop_signal() == signal.SIGUSR1
        with pytest.raises(StopError) as error:
            call(["touch", str(tmp_path / "more")], os.environ)
        assert error.value.code == 128 + signal.SIGUSR1
        return 5

    assert exit_code(work) == 5
    assert not (tmp_path / "more").exists()
    assert call(["touch", str(tmp_path / "more")], os.environ) == 0  # a later command of this process does start


def test_the_inner_of_two_leaves_everything_to_the_outer():
    with forwarding():
        handler = signal.getsignal(signal.SIGTERM)
        with forwarding():
            assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGTERM) is handler
        assert children._is_forwarding
    assert not children._is_forwarding


def test_what_is_started_has_a_session_of_its_own_only_where_signals_are_passed_on(tmp_path):
    show = [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"]
    with open(tmp_path / "log", "w+b") as log:
        call(show, os.environ, log)
        with forwarding():
            call(show, os.environ, log)
        log.seek(0)
        assert log.read() == b"False\nTrue\n"


def test_a_command_says_what_it_prints_to_a_file_or_to_a_listener(tmp_path):
    heard = []
    say = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    assert call(say, os.environ, hear=heard.append) == 3
    assert sorted(heard) == ["err", "out"]
    with open(tmp_path / "log", "wb") as log:
        assert call(say, os.environ, log) == 3
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]
