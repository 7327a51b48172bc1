"""A plan that is asked to stop lets its run save its state, starts no other, and ends with the signal's code."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from capt_tools.plan.children import forwarding
from capt_tools.plan.runner import Runner
from capt_tools.plan.settings import Settings
from capt_tools.plan.steps import StopError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
ROOT = Path(__file__).resolve().parents[2]
# A run that takes a moment to end in good order.
RUN = """
import signal, sys, time
def end(signum, frame):
    time.sleep(0.3)
    open(sys.argv[1], "w").write(signal.Signals(signum).name)
    sys.exit(128 + signum)
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(signum, end)
print("runs", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_run_ends_first_and_handlers_are_given_back(signum, tmp_path):
    heard, before = [], [signal.getsignal(s) for s in SIGNALS]

    def say(line):
        heard.append(line)
        os.kill(os.getpid(), signum)

    with pytest.raises(StopError) as caught, forwarding():
        Runner(Settings.read({}), say=say).start([sys.executable, "-c", RUN, str(tmp_path / "ended")])
    assert caught.value.code == 128 + signum
    assert (tmp_path / "ended").read_text() == signal.Signals(signum).name
    assert heard == ["runs"]
    assert [signal.getsignal(s) for s in SIGNALS] == before


def test_the_plan_stops_behind_it(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from capt_tools.plan.runner import Runner
from capt_tools.plan.script import exit_code
from capt_tools.plan.settings import Settings
def work():
    runner = Runner(Settings.read({{}}))
    for name in ("first", "second"):
        runner.start([sys.executable, "-c", {RUN!r}, {str(tmp_path)!r} + "/" + name])
    return 0
sys.exit(exit_code(work))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"runs\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_thread_takes_no_signals(tmp_path):
    before, heard = [signal.getsignal(s) for s in SIGNALS], []
    runner = Runner(Settings.read({}), say=heard.append)
    thread = threading.Thread(target=runner.start, args=(["sh", "-c", "sleep 0.2; echo done"],))
    thread.start()
    time.sleep(0.1)
    assert [signal.getsignal(s) for s in SIGNALS] == before
    thread.join()
    assert heard == ["done"]
