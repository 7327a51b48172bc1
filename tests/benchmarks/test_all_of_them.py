"""All benchmarks within a given time, and their one JSON; the commands are those that the benchmarks understand."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import all_of_them
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def _parse(script, *words):
    module = importlib.import_module(script)
    return module.parser().parse_args(words) if script == "sweep" else module.arguments(words)


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_command_parses(device, is_small, tmp_path):
    found = {name: _parse(*words) for name, words in all_of_them.commands(device, is_small, tmp_path).items()}
    assert set(found) == {"steps", "classes", "bank", "imagenet", "sweep"}
    assert {args.device for name, args in found.items() if name != "sweep"} == {device}
    assert len(found["imagenet"].opts) % 2 == 0
    assert Path(found["sweep"].backbone).is_file()


def test_what_breaks_down_or_takes_too_long_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(all_of_them, "HERE", tmp_path)
    (tmp_path / "steps.py").write_text("import json, sys\njson.dump([1], open(sys.argv[2], 'w'))\n")
    (tmp_path / "bank.py").write_text("raise SystemExit('no memory')\n")
    (tmp_path / "classes.py").write_text("import time\ntime.sleep(60)\n")
    good = all_of_them.run("steps", ["steps"], tmp_path / "a.json", 30)
    assert (good["returned"], good["figures"]) == (0, [1])
    bad = all_of_them.run("bank", ["bank"], tmp_path / "b.json", 30)
    assert (bad["returned"], bad["figures"]) == (1, None)
    assert "no memory" in bad["said"]
    slow = all_of_them.run("classes", ["classes"], tmp_path / "c.json", 1)
    assert slow["returned"] is None
    assert slow["seconds"] < 20
    assert "classes: ran out of time" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_one_line_says_so():
    words = ["bash", str(ROOT / "benchmarks/gpu.sh")]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 2
    assert "error: no GPU for --device cuda" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_script_on_a_cpu_and_the_smallest_sizes(tmp_path):
    path = tmp_path / "gpu.json"
    environ = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "SMALL": "1", "CAPT_PEERS": ""}
    words = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(path.read_text())
    assert found["machine"]["device"] == "cpu"
    assert found["steps"]["figures"]["rows"]
    assert found["classes"]["figures"]["figures"][0]["classes"] == 4
    assert len(found["bank"]["figures"]["figures"]) == 2
    assert found["imagenet"]["figures"]["figures"][0]["phases"]["steps"]["s"] > 0
    assert found["sweep"]["figures"]["runs"] == 2
