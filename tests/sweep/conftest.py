"""A python that trains nothing, a Slurm that runs nothing, and a place for sweeps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from capt_tools.plan.settings import Settings, helps
from capt_tools.sweep.cells import cells_of
from capt_tools.sweep.state import Sweep

ROOT = Path(__file__).resolve().parents[2]

# Stands for python: makes what a run makes, and keeps a journal. FAIL: what it fails at; SLOW: tenths of a second.
STUB = """#!/bin/bash
[[ $1 == *train.py ]] || { echo "called: $*"; exit 0; }
folder='' train=1
for word; do
    [[ $word != --eval-only ]] || train=0
    [[ ${before:-} != --output-dir ]] || folder=$word
    before=$word
done
say() { echo "$1 ${CUDA_VISIBLE_DEVICES:-none} $folder" >>"$JOURNAL"; }
for name in INT TERM USR1 USR2; do
    trap "say $name; echo stopped by $name; exit $((128 + $(kill -l $name)))" $name
done
say begin
[[ -z ${FAIL:-} || "$*" != *$FAIL* ]] || { echo "error: went wrong"; say fail; exit 3; }
mkdir -p "$folder/learner"
echo "epoch [1/2] batch [3/9] loss 1.0 lr 2e-03 eta 0:00:07" >"$folder/log.txt"
for ((i = 0; i < ${SLOW:-0}; i++)); do sleep 0.1; done
[[ $train == 0 ]] || { touch "$folder/learner/model.pth.tar-9"; echo model.pth.tar-9 >"$folder/learner/checkpoint"; }
echo "{}" >"$folder/results.json"
say end
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Nothing of the scripts' variables in the environment, and the checkout as the current folder."""
    for name in (*helps(), "dry_run", "methods", "datasets", "gpus", "cuda_visible_devices", "fail", "slow"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("PYTHON", "false")  # no test trains by mistake
    monkeypatch.chdir(ROOT)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Variables under which runs are those of the stub, below tmp_path."""
    path = tmp_path / "stub"
    path.write_text(STUB)
    path.chmod(0o755)
    variables = {"PYTHON": str(path), "OUTPUT": str(tmp_path / "out"), "JOURNAL": str(tmp_path / "journal")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return path


@pytest.fixture
def journal(tmp_path):
    """What the runs of the stub did: word, device, and what of the folder tells them apart."""

    def read():
        lines = (tmp_path / "journal").read_text().splitlines() if (tmp_path / "journal").exists() else []
        return [(word, device, folder.partition("/out/")[2]) for word, device, folder in map(str.split, lines)]

    return read


@pytest.fixture
def make(stub, tmp_path):
    """Makes a sweep of the stub's."""

    def make(methods, datasets="dtd", seeds="1", protocol="base2new", cluster="local"):
        settings = Settings.read(os.environ)
        cells = cells_of(methods.split(), datasets.split(), seeds.split())
        return Sweep(tmp_path / "out" / "sweeps" / protocol, protocol, settings, cluster, cells)

    return make
