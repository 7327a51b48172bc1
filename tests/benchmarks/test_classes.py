"""The benchmark of classes: phases add up, one inside another is its own, and a small run goes through."""

import time

import classes
import pytest


def test_a_phase_inside_another_is_its_own():
    clock = classes.Clock()
    with clock.phase("outer"):
        time.sleep(0.02)
        with clock.phase("inner"):
            time.sleep(0.05)
    assert clock.phases["inner"]["s"] >= 0.05
    assert 0.02 <= clock.phases["outer"]["s"] < clock.phases["inner"]["s"]


def test_memory_of_a_phase_is_its_peak():
    clock = classes.Clock()
    with clock.phase("large"):
        bytearray(64 * 2**20)
    assert clock.phases["large"]["mb"] > 60


@pytest.mark.slow
def test_a_small_run(capsys, tmp_path):
    path = tmp_path / "classes.json"
    assert classes.main(["--classes", "4", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "4 classes until the first step" in out
    assert path.is_file()
    for phase in ("imports", "model", "cache", "shift", "bank", "pairs", "gain", "first step"):
        assert f"\n| {phase} " in out
