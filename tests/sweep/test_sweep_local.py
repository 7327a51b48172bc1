"""A sweep on this machine: what is started, what is said, what is found again after a stop or a kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capt_tools.plan.script import exit_code
from capt_tools.plan.settings import Settings
from capt_tools.plan.steps import StopError
from capt_tools.sweep import local, main
from capt_tools.sweep.local import is_locked, lanes_of
from capt_tools.sweep.run_all import main as run_all
from capt_tools.sweep.state import Record, Sweep
from capt_tools.sweep.status import standings

ROOT = Path(__file__).resolve().parents[2]
GRID = ["--methods", "capt:CoOp coop", "--datasets", "dtd", "--seeds", "1 2"]


def stand(sweep):
    return [standing[:2] for standing in standings(sweep, sweep.nodes(), {})]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.fixture
def client(stub):
    """Starts a sweep's client as a process of its own."""
    started = []

    def start(*argv):
        command = [sys.executable, "scripts/sweep.py", "submit", *argv]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate()


# A sweep from beginning to end


def test_a_sweep_runs_to_its_end_and_a_second_call_has_nothing_to_do(stub, journal, capsys):
    assert main(["submit", *GRID, "--at-once", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("0 of 4 cells are done already; logs are in ")
    assert out.splitlines()[-1] == "4 cells: 4 done"
    said = [line.partition(",")[0] for line in out.splitlines() if line.startswith(("begins", "done"))]
    for seed in "12":
        assert said.index(f"done: coop dtd seed {seed}") < said.index(f"begins: capt:CoOp dtd seed {seed}")
    assert sorted(folder for word, _, folder in journal() if word == "end") == sorted(
        f"base2new/{part}/dtd/shots_16/{run}/seed{seed}"
        for part in ("train_base", "test_new")
        for run in ("CoOp/vit_b16_ctxv1", "CAPT/vit_b16_ep20_on_CoOp")
        for seed in "12"
    )
    before = journal()
    assert main(["submit", *GRID]) == 0
    assert capsys.readouterr().out.startswith("4 of 4 cells are done already")
    assert journal() == before
    assert main(["collect"]) == 0
    sweep = Sweep.find(os.environ["OUTPUT"], "base2new")
    assert not list((sweep.folder / "cells").glob("*.json"))
    log = (sweep.folder / "cells/coop_dtd_1.log").read_text()
    assert log.count("Run this job and save the output to ") == 2


def test_each_gpu_has_one_run_at_a_time(stub, journal, capsys, monkeypatch):
    monkeypatch.setenv("SLOW", "2")
    argv = ["--methods", "zsclip coop", "--datasets", "dtd eurosat", "--seeds", "1"]
    assert main(["submit", *argv, "--devices", "4 7"]) == 0
    assert {device for _, device, _ in journal()} == {"4", "7"}
    for gpu in ("4", "7"):
        mine = [word for word, device, _ in journal() if device == gpu]
        assert mine == ["begin", "end"] * (len(mine) // 2)
    assert " on GPU 4" in capsys.readouterr().out


def test_a_failed_cell_is_reported_and_the_others_go_on(stub, journal, capsys, monkeypatch):
    monkeypatch.setenv("FAIL", "train_base/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1")
    argv = ["submit", "--methods", "coop zsclip", "--datasets", "dtd", "--seeds", "1 2"]
    assert main(argv) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: coop dtd seed 1 (scripts/coop/base2new_train.sh dtd 1), ")
    assert line.endswith(" s: error: went wrong")
    assert out.splitlines()[-1] == "4 cells: 3 done, 1 failed"
    assert main(["status"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "failed " in line and "coop" in line]
    assert row.split() == ["coop", "dtd", "1", "failed", "error:", "went", "wrong"]
    assert main(["collect"]) == 1
    assert "3 of 4 cells are done\nfailed: coop dtd seed 1: error: went wrong\n" in capsys.readouterr().out
    monkeypatch.delenv("FAIL")
    assert main(argv) == 0
    assert [
        word for word, _, folder in journal() if folder.endswith("train_base/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1")
    ] == [*("begin", "fail", "begin", "end")]


def test_debug_prints_what_runs_print_and_stops_at_the_first_failure(stub, capfd, monkeypatch):
    monkeypatch.setenv("FAIL", "--trainer CoOp")
    assert (
        main(["submit", "--cluster", "debug", "--methods", "zsclip coop maple", "--datasets", "dtd", "--seeds", "1"])
        == 1
    )
    out = capfd.readouterr().out
    assert "error: went wrong" in out
    assert out.splitlines()[-1] == "3 cells: 1 done, 1 failed, 1 not sent"


def test_nothing_is_collected_where_nothing_is_done(make, capfd):
    make("coop").save()
    assert main(["collect"]) == 1
    assert capfd.readouterr().out == "0 of 1 cells are done\nnot sent: coop dtd seed 1\n"


# Stops


def test_a_signal_stops_the_runs_and_the_same_command_goes_on(client, make, journal, monkeypatch):
    monkeypatch.setenv("SLOW", "100")
    process = client(*GRID, "--at-once", "2")
    wait_for(lambda: len(journal()) == 2)
    sweep = Sweep.find(os.environ["OUTPUT"], "base2new")
    wait_for(lambda: stand(sweep)[0][1] == "run 1 of 2, epoch 1/2, 0:00:07 left")
    assert stand(sweep) == [
        ("running", "run 1 of 2, epoch 1/2, 0:00:07 left"),
        ("waiting", "for coop dtd seed 1"),
        ("running", "run 1 of 2, epoch 1/2, 0:00:07 left"),
        ("waiting", "for coop dtd seed 2"),
    ]
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 128 + signal.SIGUSR1
    out = process.stdout.read()
    assert out.splitlines()[-1] == "Stopped; the same command goes on where this one ended"
    assert sorted(word for word, *_ in journal()) == ["USR1", "USR1", "begin", "begin"]
    assert [state for state, _ in stand(sweep)] == ["interrupted", "not sent"] * 2
    assert stand(sweep)[0][1] == "stopped by USR1"
    monkeypatch.setenv("SLOW", "0")
    assert client(*GRID).wait(60) == 0
    assert [state for state, _ in stand(sweep)] == ["done"] * 4


def test_cancel_stops_the_client_and_a_second_client_is_refused(client, journal, capsys, monkeypatch):
    monkeypatch.setenv("SLOW", "100")
    process = client(*GRID)
    wait_for(lambda: journal())
    assert main(["submit", *GRID]) == 2
    assert capsys.readouterr().err == (
        f"error: {process.pid} on {socket.gethostname()} runs this sweep already; see its status\n"
    )
    assert main(["cancel"]) == 0
    assert capsys.readouterr().out == f"Told to stop: process {process.pid}\n"
    assert process.wait(20) == 128 + signal.SIGTERM
    assert main(["cancel"]) == 0
    assert capsys.readouterr().out == "Nothing waits or runs\n"


def test_a_client_on_another_machine_is_not_killed_here(make):
    sweep = make("coop")
    sweep.save()
    with local._only_client(sweep):
        (sweep.folder / "client").write_text("1 elsewhere")
        with pytest.raises(StopError, match="process 1 on elsewhere runs this sweep; cancel it there"):
            local.cancel(sweep)


def test_runs_outlive_a_killed_client_and_are_waited_for(client, journal, monkeypatch):
    monkeypatch.setenv("SLOW", "30")
    process = client("--methods", "zsclip", "--datasets", "dtd", "--seeds", "1")
    wait_for(lambda: journal())
    process.kill()
    process.wait()
    sweep = Sweep.find(os.environ["OUTPUT"], "base2new")
    assert stand(sweep)[0][0] == "running"
    monkeypatch.setenv("SLOW", "0")
    again = client("--methods", "zsclip", "--datasets", "dtd", "--seeds", "1")
    assert again.wait(30) == 0
    out = again.stdout.read()
    assert "waits: zsclip dtd seed 1 still runs, by a client that is gone" in out
    assert [word for word, *_ in journal()] == ["begin", "end", "begin", "end"]  # base classes once, new ones once
    assert stand(sweep) == [("done", "")]


def test_a_cell_whose_run_was_killed_with_its_client_is_interrupted(make):
    sweep = make("coop")
    sweep.save()
    sweep.note(sweep.cells[0], Record("running"))
    sweep.log(sweep.cells[0]).write_text("epoch 3\n")
    assert stand(sweep) == [("interrupted", "epoch 3")]


def test_a_lock_is_held_as_long_as_its_holder_lives(tmp_path):
    path = tmp_path / "log"
    assert not is_locked(path)
    with open(path, "ab") as file:
        assert local._lock(file)
        assert is_locked(path)
        child = subprocess.Popen(["sleep", "30"], stdout=file)
    assert is_locked(path)  # a run holds the log that it prints to
    child.kill()
    child.wait()
    assert not is_locked(path)


def test_who_only_asks_for_a_lock_stops_nobody(tmp_path):
    """Four processes ask all the time whether the file is locked; one takes it and gives it back, again and again."""
    path = tmp_path / "log"
    path.touch()
    ask = "import sys, pathlib; from capt_tools.sweep.local import is_locked\n"
    ask += "while True: is_locked(pathlib.Path(sys.argv[1]))"
    asking = [subprocess.Popen([sys.executable, "-c", ask, str(path)], cwd=ROOT) for _ in range(4)]
    try:
        time.sleep(1)
        for _ in range(20):
            with open(path, "ab") as file:
                assert local._lock(file, local.GLANCE)
    finally:
        for process in asking:
            process.kill()
            process.wait()


# Lanes


@pytest.mark.parametrize(
    ("devices", "at_once", "environ", "lanes"),
    [
        ("0 1", None, {}, ["0", "1"]),
        (None, None, {"GPUS": "3 5"}, ["3", "5"]),
        (None, 2, {"CUDA_VISIBLE_DEVICES": "2,4,6"}, ["2", "4", "6"]),
        ("0 0", None, {"CUDA_VISIBLE_DEVICES": "1"}, ["0", "0"]),
        (None, 3, {"CUDA_VISIBLE_DEVICES": ""}, ["", "", ""]),
        (None, None, {"CUDA_VISIBLE_DEVICES": ""}, [""]),
        (None, 2, {}, ["", ""]),
    ],
)
def test_lanes(devices, at_once, environ, lanes):
    assert lanes_of(devices, at_once, environ) == lanes


@pytest.mark.parametrize(
    ("devices", "environ", "lanes"),
    [
        ("0 1 2 3", {}, ["0,1", "2,3"]),
        ("0,1 2,3", {}, ["0,1", "2,3"]),
        (None, {"CUDA_VISIBLE_DEVICES": "4,5,6"}, ["4,5"]),
        (None, {"CUDA_VISIBLE_DEVICES": ""}, [""]),
    ],
)
def test_lanes_of_runs_of_two_processes(devices, environ, lanes):
    assert lanes_of(devices, None, environ, 2) == lanes


def test_too_few_gpus_for_a_run_of_several_processes():
    with pytest.raises(StopError, match="a run of 3 processes needs as many GPUs, there are 2; lower NPROC"):
        lanes_of("0 1", None, {}, 3)


def test_gpus_are_counted_where_nobody_names_them(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: A'\necho '  MIG 1g'\necho 'GPU 1: B'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert lanes_of(None, None, {}) == ["0", "1"]
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert lanes_of(None, None, {}) == [""]


def test_cores_are_shared_out_among_runs(make, stub, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    stub.write_text(stub.read_text().replace("${CUDA_VISIBLE_DEVICES:-none}", "${OMP_NUM_THREADS:-none}"))
    sweep = make("zsclip", "dtd eurosat")
    environ = dict(os.environ)
    assert local.run(sweep, ["", ""], environ) == 0
    journal = Path(os.environ["JOURNAL"])
    assert {line.split()[1] for line in journal.read_text().splitlines()} == {"4"}
    journal.unlink()
    assert local.run(make("zsclip", "food101"), [""], environ) == 0
    assert {line.split()[1] for line in journal.read_text().splitlines()} == {"none"}
    for datasets, lanes, given, threads in (
        ("ucf101 sun397", ["0", "1", "2", "3"], {}, "2"),  # GPUs share the cores as well
        ("imagenet", ["", ""], {"OMP_NUM_THREADS": "3"}, "3"),  # and what the user says stands
        ("oxford_pets", ["0", "1"], {"OMP_NUM_THREADS": ""}, "4"),
    ):
        journal.unlink()
        assert local.run(make("zsclip", datasets), lanes, environ | given) == 0
        assert {line.split()[1] for line in journal.read_text().splitlines()} == {threads}


# run_all.sh


def test_run_all_ends_by_a_signal_with_its_code(stub, journal):
    command = ["bash", "scripts/run_all.sh"]
    environ = {**os.environ, "METHODS": "coop", "DATASETS": "dtd eurosat", "GPUS": "0 1", "SLOW": "100"}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: len(journal()) == 2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert sorted(word for word, *_ in journal()) == ["TERM", "TERM", "begin", "begin"]
    assert "All runs are done" not in out


def test_run_all_leaves_nothing_but_runs(stub, monkeypatch, tmp_path):
    for name, value in {"METHODS": "zsclip", "DATASETS": "dtd", "SEEDS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run_all([]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["base2new"]


def test_run_all_spreads_the_methods_of_one_seed(stub, journal, monkeypatch, tmp_path):
    """What lanes of data sets and seeds could not: one data set and seed keeps two devices busy."""
    variables = {"METHODS": "coop maple", "DATASETS": "dtd", "SEEDS": "1", "GPUS": "0 1", "SLOW": "3"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_all([""]) == 0
    assert [word for word, *_ in journal()[:2]] == ["begin", "begin"]
    assert {device for _, device, _ in journal()} == {"0", "1"}


def test_exit_code_of_a_sweep_that_got_a_signal_between_runs(make):
    def work():
        signal.raise_signal(signal.SIGTERM)
        return local.run(make("coop"), [""], {})

    assert exit_code(work) == 128 + signal.SIGTERM
    assert Settings.read({}).output == "output"
