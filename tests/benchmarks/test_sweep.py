"""The benchmark of a sweep: what it compares, and one tiny sweep both ways."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sweep

ROOT = Path(__file__).resolve().parents[2]


def _leave(folder, probs):
    folder.mkdir(parents=True)
    np.savez(folder / "predictions.npz", probs=np.asarray(probs))


def test_predictions_are_compared_to_the_last_bit(tmp_path):
    _leave(tmp_path / "old/a/seed1", [0.5, 0.5])
    _leave(tmp_path / "new/a/seed1", [0.5, 0.5])
    assert sweep.same_predictions(tmp_path / "old", tmp_path / "new") == 1
    _leave(tmp_path / "old/b/seed1", [0.5, 0.5])
    _leave(tmp_path / "new/b/seed1", [0.5, np.nextafter(0.5, 1)])
    with pytest.raises(ValueError, match=r"b/seed1/predictions\.npz differs between the two ways"):
        sweep.same_predictions(tmp_path / "old", tmp_path / "new")


def test_the_ways_differ_in_processes_and_files_alone(tmp_path, monkeypatch):
    """One lane and a folder of its own for the new way, none of both for the old."""
    seen = []

    def run(runner, plan):
        seen.append((runner.settings.opts, runner._lane is not None))
        assert runner._log is None

    monkeypatch.setattr(sweep.Runner, "run", run)
    args = sweep.parser().parse_args(["--data", "d", "--methods", "zsclip tipadapter", "--seeds", "1 2"])
    for way in ("old", "new"):
        wall, cpu = sweep.run(args, way, tmp_path)
        assert wall >= 0
        assert cpu >= 0
    common = ("DATALOADER.NUM_WORKERS", "0")
    assert seen[:8] == [((*common, "TRAINER.CAPT.CACHE.DISK_GB", "0"), False)] * 8
    assert seen[8:] == [((*common, "TRAINER.CAPT.CACHE.DIR", str(tmp_path / "features")), True)] * 8


@pytest.mark.slow
def test_a_tiny_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = ["--data", str(tmp_path / "data"), "--dataset", "glyphs", "--backbone", "assets/glyphs_clip.pt"]
    words += ["--size", "(48, 48)", "--methods", "zsclip", "--seeds", "1", "--json", str(tmp_path / "out.json")]
    assert sweep.main(words) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["runs"] == 2
    assert set(found["seconds"]) == {"old", "new"}
    assert "equal to the last bit" in capsys.readouterr().out
