"""The benchmark of two processes times the three ways of a step, and shares the text tower in one of them alone."""

import json

import distributed
import pytest
import torch


@pytest.mark.slow
def test_the_ways_are_timed_and_stored(tmp_path, capfd):
    path = tmp_path / "distributed.json"
    words = ["--classes", "4", "6", "--methods", "CoOp", "--batch", "3", "--steps", "1", "--turns", "1"]
    threads = torch.get_num_threads()
    try:
        assert distributed.main([*words, "--output", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(path.read_text())["figures"]
    assert [found["classes"] for found in figures] == [4, 6]
    assert all(found[kind][way] > 0 for found in figures for kind in distributed.TIMES for way in distributed.WAYS)
    assert "one / shared" in capfd.readouterr().out


def test_the_table_says_how_many_times_as_fast_two_are():
    kinds = {kind: {"one": 0.1, "apart": 0.1, "shared": 0.04} for kind in distributed.TIMES}
    said = distributed.table([{"method": "CoOp", "classes": 20, **kinds}])
    assert said.splitlines()[2].replace(" ", "") == "|CoOp|20|clock|100|100|40|1.00|2.50|"
