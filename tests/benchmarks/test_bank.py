"""The retrieval benchmark compares two ways that give the same answers, and says so where they do not."""

import json

import bank
import pytest
import torch


def test_both_ways_agree_and_the_figures_are_stored(tmp_path, capsys):
    path = tmp_path / "bank.json"
    words = ["--entries", "40", "3000", "--classes", "30", "--queries", "5", "--width", "16", "--repeats", "1"]
    threads = torch.get_num_threads()
    try:
        assert bank.main([*words, "--output", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(path.read_text())["figures"]
    assert [f["entries"] for f in figures] == [40, 3000]
    assert all(f["same_answers"] and f["by_classes_ms"] > 0 for f in figures)
    assert "3,000" in capsys.readouterr().out


def test_another_answer_is_noticed():
    own = bank.random_bank(300, 10, 8, "cpu")
    query = bank.random_query(4, 10, 8, "cpu")
    right = bank.by_mask(own, query)
    assert bank.agree(bank.by_classes(own, query), right)
    wrong = bank.by_mask(own, (-query[0], *query[1:]))
    assert not bank.agree(wrong, right)


def test_the_two_are_timed_in_turns():
    calls = []
    times = bank.medians([lambda: calls.append(0), lambda: calls.append(1)], 3, "cpu")
    assert calls == [0, 1] * 4
    assert times == pytest.approx(times)
    assert len(times) == 2
