"""From a signal to the end of the process: real processes of every trainer, and what the benchmark refuses."""

from __future__ import annotations

import sys

import pytest
import stop_seconds

import train

STOPS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: {}); print('there', flush=True); {}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.slow
@pytest.mark.parametrize("run", stop_seconds.RUNS)
def test_a_run_ends_within_ten_seconds(run, data, tmp_path):
    for seconds in stop_seconds.stop_seconds(run, data, tmp_path):
        assert seconds < 10


@pytest.mark.parametrize("run", stop_seconds.RUNS)
def test_the_commands_are_what_train_takes(run, tmp_path, monkeypatch):
    monkeypatch.chdir(stop_seconds.ROOT)
    words = stop_seconds.command(run, tmp_path, tmp_path / "out", 2)
    cfg = train.setup_cfg(train.build_parser().parse_args(words[2:]))
    assert stop_seconds.RUNS[run][0] == cfg.TRAINER.NAME
    assert cfg.DATALOADER.NUM_WORKERS == 2
    assert cfg.TRAINER[cfg.TRAINER.NAME.upper()].PREC == "fp32"


def script(does, then="time.sleep(60)"):
    return [sys.executable, "-c", STOPS.format(does, then)]


def test_the_time_is_that_from_the_signal_on(tmp_path):
    does = "(time.sleep(0.5), print('SIGTERM: stopped somewhere', flush=True), sys.exit(143))"
    assert 0.5 < stop_seconds.stop(script(does), tmp_path / "log", "there") < 5


@pytest.mark.parametrize(
    ("does", "then", "mark", "words"),
    [
        ("sys.exit(143)", "time.sleep(60)", "there", "it ended by 143"),  # it does not say where
        ("(print('SIGTERM: stopped', flush=True), sys.exit(1))", "time.sleep(60)", "there", "it ended by 1;"),
        ("0", "0", "nowhere", '"nowhere" did not come'),
    ],
)
def test_a_run_that_ends_otherwise_is_refused(does, then, mark, words, tmp_path):
    with pytest.raises(RuntimeError, match=words):
        stop_seconds.stop(script(does, then), tmp_path / "log", mark)
