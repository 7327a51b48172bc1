"""The benchmark of steps: what it compares and tells apart, and one small run of it."""

import json
import os

import drawn
import numpy as np
import pytest
import steps
import tiny
import torch


@pytest.fixture(autouse=True)
def own_sizes():
    """The tests' sizes come back."""
    yield
    drawn.take_sizes("tiny")


def _store(path, **arrays):
    np.savez(path, **{name: np.asarray(value, dtype=np.float32) for name, value in arrays.items()})
    return path


def test_differences_of_gradients_are_in_parts_of_the_largest_entry(tmp_path):
    ours = _store(tmp_path / "a.npz", logits=[1.0, 2.0], ctx=[0.0, 102.0], bias=[0.5])
    theirs = _store(tmp_path / "b.npz", logits=[1.0, 2.5], ctx=[1.0, 100.0], bias=[0.5])
    assert steps.differences(ours, theirs) == {"logits": 0.5, "largest_logit": 2.5, "gradients": pytest.approx(0.02)}


def test_other_trained_parameters_are_refused(tmp_path):
    ours, theirs = _store(tmp_path / "a.npz", logits=[1.0], ctx=[1.0]), _store(tmp_path / "b.npz", logits=[1.0])
    with pytest.raises(ValueError, match=r"trained parameters differ: \['ctx'\]"):
        steps.differences(ours, theirs)


class Counting:
    """A worker whose turns take 3, 1 and 2 seconds."""

    def __init__(self, calls, name):
        self.calls, self.name, self.seconds = calls, name, iter([3.0, 1.0, 2.0])

    def ask(self, way, batch, of=None):
        self.calls.append((self.name, of or way, batch))
        return {"flops": 7} if way == "count" else {"cpu_s": next(self.seconds)}


def test_processes_take_turns_and_the_first_is_not_timed():
    calls = []
    found = steps.in_turns([(Counting(calls, "a"), "step"), (Counting(calls, "b"), "test")], 4, turns=3)
    assert calls == [("a", "step", 4), ("b", "test", 4)] * 4
    assert [(one["cpu_s"], one["flops"]) for one in found] == [(2.0, 7), (2.0, 7)]
    assert [turn["cpu_s"] for turn in found[0]["all"]] == [3.0, 1.0, 2.0]


def _row(side, way, seconds, method="MaPLe", batch=4):
    about = {"method": method, "side": side, "way": way, "batch": batch, "share": 0.5, "mb": 100.0, "mb_above": 10.0}
    return {**about, "cpu_s": seconds, "wall_s": 2 * seconds}


def test_ratios_are_to_the_same_method_and_batch():
    rows = [_row("ours", "step", 2.0), _row("original", "step", 8.0), _row("ours", "step", 3.0, batch=32)]
    rows += [_row("capt", "cached step", 0.04, "CAPT"), _row("capt", "test", 1.1, "CAPT")]
    rows += [_row("capt", "base test", 1.0, "CAPT")]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in steps.tables(rows, "cpu_s").splitlines()]
    assert ["MaPLe", "4", "8.00", "2.00", "0.25", "100", "100", "50 %"] in lines
    assert ["MaPLe", "32", "", "3.00", "", "", "100", "50 %"] in lines, "no original ran with that batch"
    assert ["cached step", "4", "0.040", "0.0200", "0.0050", "", "10", "50 %"] in lines
    assert ["test", "4", "1.100", "", "", "1.100", "10", "50 %"] in lines


def test_sizes_are_those_of_the_clip_that_is_drawn(tmp_path):
    drawn.take_sizes("vit_b16")
    assert (tiny.TEXT_WIDTH, tiny.VISUAL_WIDTH, tiny.SIDE, tiny.PATCH) == (512, 768, 224, 16)
    drawn.take_sizes("tiny")
    state = torch.load(drawn.store_clip(tmp_path / "clip.pt"))
    for name, value in tiny.clip_state().items():
        assert torch.equal(state[name].float(), value), name  # numbers of half precision to begin with


def test_names_differ():
    names = drawn.class_names(130)
    assert len(set(names)) == 130
    assert all(2 <= len(name.split()) <= 3 for name in names)


def test_a_worker_that_ends_says_why():
    about = {"side": "ours", "name": "NoSuch", "keys": {}, "clip": "no.pt", "classes": 2, "device": "cpu"}
    with pytest.raises(RuntimeError, match="KeyError: 'huge'"):
        steps.Worker({**about, "sizes": "huge", "threads": 1, "peers": ""}).wait()


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys):
    path = tmp_path / "steps.json"
    words = ["--sizes", "tiny", "--classes", "12", "--batch", "2", "--turns", "1", "--methods", "CoOp", "MaPLe"]
    assert steps.main([*words, "--output", str(path)]) == 0
    out = capsys.readouterr().out
    found = json.loads(path.read_text())
    sides = {(row["method"], row["side"], row["way"]) for row in found["rows"]}
    assert {("CoOp", "ours", "step"), ("MaPLe", "ours", "step"), ("CAPT", "capt", "cached step")} <= sides
    assert all(0 < row["share"] < 2 and row["flops"] > 0 and row["mb"] > 0 for row in found["rows"])
    assert "| cached step |" in out
    if os.environ.get("CAPT_PEERS"):
        for row in found["rows"]:
            assert row["equal"] is None or (row["equal"]["logits"] < 1e-5 and row["equal"]["gradients"] < 1e-4)
