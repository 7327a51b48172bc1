"""What a sweep is asked for, and what is kept of it: flags, yaml, variables, sweep.json."""

from __future__ import annotations

import json

import pytest

from capt_tools.plan.steps import StopError
from capt_tools.sweep import main
from capt_tools.sweep.cells import Cell
from capt_tools.sweep.options import add_flags_of_sweeps, asked, parse
from capt_tools.sweep.state import Record, Sweep, last_line
from capt_tools.tool import parser_of


def read(*argv):
    parser = parser_of("Doc.")
    parser.add_argument("action")
    add_flags_of_sweeps(parser)
    return parse(parser, ["submit", *argv])


@pytest.fixture
def file(tmp_path):
    def write(text, name="sweep.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


# Flags, yaml, variables


def test_flags_go_before_the_file_and_the_file_before_variables(file, monkeypatch, tmp_path):
    for name, value in {"METHODS": "zsclip", "DATASETS": "dtd", "SHOTS": "1", "EPOCHS": "2", "CFG": "demo"}.items():
        monkeypatch.setenv(name, value)
    path = file(f"methods: [coop, 'capt:CoOp']\nshots: 4\nepochs: 3\noutput: {tmp_path}\n")
    sweep = asked(read(path, "--epochs", "5"))
    assert [cell.method for cell in sweep.cells] == ["coop", "capt:CoOp"] * 3
    assert {cell.dataset for cell in sweep.cells} == {"dtd"}
    assert (sweep.settings.shots, sweep.settings.epochs, sweep.settings.cfg) == ("4", "5", "demo")
    assert (sweep.cluster, sweep.protocol, sweep.folder) == ("local", "base2new", tmp_path / "sweeps/base2new")


def test_a_file_means_what_the_flags_would(file):
    text = """
protocol: few_shot
cluster: slurm
time: 4:00:00
gpus: 0
per-job: 3
at_once: 2
seeds: [4, 5]
size: (48, 48)
opts: [A.B, 1, C, x]
sbatch: {nice: 100, exclude: "node[1-2]"}
mem:
"""
    args = read(file(text))
    assert (args.time, args.gpus, args.per_job, args.at_once, args.mem) == ("4:00:00", 0, 3, 2, None)
    assert args.sbatch == ["nice=100", "exclude=node[1-2]"]
    sweep = asked(args)
    assert (sweep.settings.size, sweep.settings.opts) == ("(48, 48)", ("A.B", "1", "C", "x"))
    assert {cell.seed for cell in sweep.cells} == {"4", "5"}
    assert sweep.folder.name == "few_shot"
    flags = "--protocol few_shot --cluster slurm --gpus 0 --per-job 3 --at-once 2 --sbatch nice=100 exclude=node[1-2]"
    same = read(*flags.split(), "--seeds", "4 5", "--size", "(48, 48)", "--opts", "A.B 1 C x")
    assert {**vars(same), "file": None} == {**vars(args), "file": None}


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ("metods: coop", "a.yaml", "a.yaml: unknown name metods; there are: account at_once backbone"),
        ("action: status", "a.yaml", "unknown name action"),
        ("", "a.yaml", "holds no names with values"),
        ("- coop", "a.yml", "holds no names with values"),
        ("a: [", "a.yaml", "is no yaml: while parsing"),
        ("gpus: many", "a.yaml", "gpus must be a whole number, got many"),
        ("import os", "a.py", "a.py is no .yaml or .yml file"),
        ("methods: !!python/object/apply:os.getcwd [a]", "a.yaml", "unknown method a"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text, name, line, file, capsys, tmp_path):
    assert main(["submit", file(text, name), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("none.yaml", "cannot read none.yaml (No such file or directory)"),
        ("--methods copo", "unknown method copo; there are: capt clipadapter cocoop coop"),
        ("--datasets dtd,eurosat", "unknown data set dtd,eurosat; there are: caltech101 dtd eurosat"),
        ("--protocol xs", "unknown protocol xs; there are: base2new xd few_shot"),
        ("--cluster pbs", "unknown cluster pbs; there are: slurm local debug"),
        ("--cfg none --methods coop", "no such configuration: configs/trainers/CoOp/none.yaml"),
        ("--methods capt:Other", "no default configuration for Other; set CFG"),
    ],
)
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_what_is_not_there_is_refused_before_anything_starts(flags, line, cluster, capsys, tmp_path):
    argv = ["submit", *flags.split(), "--output", str(tmp_path / "out")]
    assert main(argv if "--cluster" in flags else [*argv, "--cluster", cluster]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


def test_no_right_to_write_is_one_line(capsys, tmp_path):
    (tmp_path / "file").touch()
    argv = ["submit", "--methods", "zsclip", "--datasets", "dtd", "--output", str(tmp_path / "file")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write to {tmp_path}/file/sweeps/base2new (")
    assert "set OUTPUT to another folder" in error


def test_base_learners_come_before_capt(tmp_path):
    sweep = asked(read("--methods", "capt:CoOp zsclip capt coop", "--datasets", "dtd", "--output", str(tmp_path)))
    assert [cell.method for cell in sweep.cells[:4]] == ["zsclip", "coop", "capt:CoOp", "capt"]


def test_a_dry_run_shows_the_jobs_and_writes_nothing(capsys, tmp_path):
    argv = ["submit", "--methods", "coop capt:CoOp", "--datasets", "dtd", "--seeds", "1 2", "--dry-run"]
    assert main([*argv, "--output", str(tmp_path / "out"), "--cluster", "slurm"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "array 1, 2 jobs",
        "    coop dtd seed 1",
        "    coop dtd seed 2",
        "array 2, 1 jobs after coop dtd seed 1",
        "    capt:CoOp dtd seed 1",
        "array 3, 1 jobs after coop dtd seed 2",
        "    capt:CoOp dtd seed 2",
    ]
    assert main([*argv, "--output", str(tmp_path / "out"), "--per-job", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "array 1, 2 jobs",
        "    coop dtd seed 1, capt:CoOp dtd seed 1",
        "    coop dtd seed 2, capt:CoOp dtd seed 2",
    ]
    assert not (tmp_path / "out").exists()


# What is kept


def test_a_sweep_is_read_back_as_it_was(make):
    sweep = make("coop capt:CoOp", seeds="1 2")
    sweep.jobs, sweep.sending = {"coop_dtd_1": "12_0"}, {"name": "x", "cells": [["coop_dtd_2"]]}
    sweep.save()
    assert Sweep.find(sweep.settings.output, "base2new") == sweep


def test_a_sweep_that_is_not_there_names_those_that_are(make):
    sweep = make("coop")
    with pytest.raises(StopError, match="no sweep mine in .*sweeps; capt sweep submit makes one"):
        Sweep.find(sweep.settings.output, "mine")
    sweep.save()
    with pytest.raises(StopError, match="no sweep mine in .*sweeps; there are: base2new"):
        Sweep.find(sweep.settings.output, "mine")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": {"nothing": 1}, "cells": []}'])
def test_a_damaged_file_says_that_no_run_is_lost(text, make):
    sweep = make("coop")
    sweep.save()
    (sweep.folder / "sweep.json").write_text(text)
    with pytest.raises(StopError, match="sweep.json is damaged .*done runs stay done"):
        Sweep.find(sweep.settings.output, "base2new")


def test_a_second_call_adds_cells_and_refuses_other_runs(make, monkeypatch, tmp_path):
    make("coop", seeds="1").save()
    argv = ["--methods", "coop zsclip", "--datasets", "dtd", "--seeds", "1 2"]
    sweep = asked(read(*argv))
    assert sweep.cells == [
        Cell("coop", "dtd", "1"),
        *(Cell(*c) for c in [("zsclip", "dtd", "1"), ("coop", "dtd", "2"), ("zsclip", "dtd", "2")]),
    ]
    with pytest.raises(
        StopError, match=r"holds another sweep \(shots 16 there, 4 here, epochs not set there, 3 here\)"
    ):
        asked(read(*argv, "--shots", "4", "--epochs", "3"))
    assert len(asked(read(*argv, "--shots", "4", "--name", "other")).cells) == 4
    with pytest.raises(StopError, match="protocol base2new there, few_shot here"):
        asked(read(*argv, "--protocol", "few_shot", "--name", "base2new"))


def test_records_and_last_lines(make, tmp_path):
    sweep = make("coop")
    sweep.save()
    (cell,) = sweep.cells
    assert sweep.record(cell) is None
    sweep.note(cell, Record("failed", "é"))
    assert sweep.record(cell) == Record("failed", "é")
    sweep.note(cell, None)
    sweep.note(cell, None)
    assert sweep.record(cell) is None
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"x" * 20000 + b"\n10%\r100%\rerror: it  \n\n \n")
    assert last_line(log) == "error: it"
    log.write_bytes(b"\n\n")
    assert last_line(log) == ""


def test_status_without_a_sweep_is_one_line(capsys, tmp_path):
    for action in ("status", "cancel", "collect"):
        assert main([action, "--output", str(tmp_path)]) == 2
        assert (
            capsys.readouterr().err == f"error: no sweep base2new in {tmp_path}/sweeps; capt sweep submit makes one\n"
        )


def test_sweep_json_is_plain(make):
    sweep = make("coop")
    sweep.save()
    stored = json.loads((sweep.folder / "sweep.json").read_text())
    assert set(stored) == {"protocol", "settings", "cluster", "cells", "jobs", "sending"}
    assert stored["cells"] == [["coop", "dtd", "1"]]
