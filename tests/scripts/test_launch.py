"""The launcher of several processes: codes, signals and environment are those of the run, and it has no other word."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import killing  # noqa: E402
from processes import launched  # noqa: E402

from capt_tools.launch import launch  # noqa: E402
from capt_tools.plan.lane import VARIABLE  # noqa: E402

# Each process says that it is there, and then does what its number is told to do.
SCRIPT = """
import json, os, pathlib, signal, sys, time
folder, *acts = sys.argv[1:]
rank = int(os.environ["RANK"])
got = []
def take(number, frame):
    got.append(number)
    if acts[rank] == "stubborn" and len(got) == 1:
        return
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, take)
known = [os.environ.get(name) for name in ("CAPT_LANE", "WORLD_SIZE", "OMP_NUM_THREADS")]
pathlib.Path(folder, f"there{rank}").write_text(json.dumps([sys.argv[1:], *known]))
if acts[rank].isdigit():
    time.sleep(0.3)
    sys.exit(int(acts[rank]))
if acts[rank] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if acts[rank] != "--nproc":
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    children = []

    def one(*acts):
        work = lambda: launch(2, [str(tmp_path / "script.py"), str(tmp_path), *acts])  # noqa: E731
        children.append(launched(work, tmp_path / "printed"))
        while not all((tmp_path / f"there{rank}").exists() for rank in range(2)):
            time.sleep(0.02)
        return children[-1]

    yield one
    for child in children:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.parametrize(
    ("acts", "code"),
    [(("0", "0"), 0), (("3", "wait"), 3), (("wait", "4"), 4), (("kill", "wait"), 137), (("--nproc", "--nproc"), 0)],
)
def test_the_code_is_that_of_the_first_to_go(acts, code, start, tmp_path):
    assert killing.ended(start(*acts)) == code
    killed = "error: process 0 was ended by SIGKILL; the same command goes on from what was saved\n"
    assert (tmp_path / "printed").read_text() == (killed if "kill" in acts else "")


def test_the_processes_know_their_words_and_are_no_lanes(start, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    killing.ended(start("0", "0"))
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    for rank in range(2):
        assert json.loads((tmp_path / f"there{rank}").read_text()) == [[str(tmp_path), "0", "0"], None, "2", threads]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_reaches_all_and_is_the_code(signum, start, tmp_path):
    child = start("wait", "wait")
    os.kill(child, signum)
    assert killing.ended(child) == 128 + signum
    assert (tmp_path / "printed").read_text() == ""


def test_a_second_signal_ends_at_once(start, tmp_path):
    child, since = start("stubborn", "stubborn"), time.monotonic()
    os.kill(child, signal.SIGTERM)
    time.sleep(1)
    os.kill(child, signal.SIGTERM)
    assert killing.ended(child) == 128 + signal.SIGTERM
    assert time.monotonic() - since < 10
