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
    for phase in ("imports", "model", "cache", "shift", "bank", "pairs", "gain", "test"):
        assert f"\n| {phase} " in out


def test_names_are_read_from_lines_and_from_json(tmp_path):
    lines, table = tmp_path / "a.txt", tmp_path / "b.json"
    lines.write_text("sea lake\n\n wrench \nsea lake\n")
    table.write_text('{"abbey": ["An abbey."], "airplane cabin": []}')
    assert classes.read_names(lines) == ["sea lake", "wrench"]
    assert classes.read_names(table) == ["abbey", "airplane cabin"]


@pytest.mark.slow
def test_a_run_with_names_of_a_file(capsys, tmp_path):
    path, names = tmp_path / "classes.json", tmp_path / "names.txt"
    names.write_text("cup\nsea/lake view\nwrench\n")
    assert classes.main(["--names", str(names), "--shots", "1", "--output", str(path)]) == 0
    assert "3 classes until the first step" in capsys.readouterr().out
    assert '"classes": 3' in path.read_text()
