"""Every benchmark starts as a script, wherever it is started; and small runs of those that no other test runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import checkpoint_cost
import planted_confusions
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path.name
    for path in (ROOT / "benchmarks").glob("*.py")
    if "__main__" in path.read_text("utf-8") and path.name != "step_worker.py"  # which steps.py alone starts
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name, tmp_path):
    words = [sys.executable, str(ROOT / "benchmarks" / name), "--help"]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}")


@pytest.mark.slow
def test_the_clip_whose_states_are_timed_is_a_vit_b16():
    state = checkpoint_cost.vit_b16()
    assert state["visual.conv1.weight"].shape == (768, 3, 16, 16)
    assert sum(".resblocks.11." in name for name in state) == 2 * 12  # both towers end with their twelfth block
    assert round(sum(value.numel() for value in state.values()) / 1e6) == 150


@pytest.mark.slow
def test_what_a_state_costs(tmp_path, capsys):
    threads = torch.get_num_threads()
    words = ["--out", str(tmp_path), "--classes", "4", "--steps", "1", "--repeats", "2", "--pause", "0"]
    checkpoint_cost.main(words)
    assert torch.get_num_threads() == threads
    out = capsys.readouterr().out
    sizes = [float(size) for size in re.findall(r"^\| (?:MaPLe|CAPT) .* (\d+\.\d) \|$", out, re.MULTILINE)]
    assert sizes == sorted(sizes)  # a state of CAPT's experts is the larger one
    assert len(sizes) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_small_clip_with_planted_confusions(tmp_path, capsys):
    words = ["--root", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--kinds", "1", "--per-class", "2"]
    words += ["--pretrain-epochs", "1", "--shots", "1", "--seeds", "1"]
    assert planted_confusions.main(words) == 0
    assert (tmp_path / "work/kinds1_2x1.pt").is_file()
    last = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")][0] == "1"
    assert last.count("±") == len(planted_confusions.HEADER) - 1
