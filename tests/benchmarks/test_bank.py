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


def test_faiss_gives_the_same_answers():
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    own = bank.random_bank(300, 10, 8, "cpu")
    query = bank.random_query(6, 10, 8, "cpu")
    index = bank.index_of(own)
    assert bank.agree(bank.by_faiss(own, query, index), bank.by_mask(own, query))
    rare = bank.random_bank(8, 10, 8, "cpu")  # fewer entries than are asked for
    found = bank.by_faiss(rare, query, bank.index_of(rare))
    assert not found.valid.all()
    assert bank.agree(found, bank.by_mask(rare, query))


def test_without_faiss_the_table_says_so(monkeypatch, capsys):
    monkeypatch.setattr(bank.importlib.util, "find_spec", lambda name: None)
    threads = torch.get_num_threads()
    try:
        assert bank.main(["--entries", "40", "--classes", "8", "--queries", "2", "--width", "8", "--repeats", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "without faiss" in out
    assert "faiss, mined classes" not in out


def test_the_two_are_timed_in_turns():
    calls = []
    times = bank.medians([lambda: calls.append(0), lambda: calls.append(1)], 3, "cpu")
    assert calls == [0, 1] * 4
    assert times == pytest.approx(times)
    assert len(times) == 2
