"""A bank of anybody's predictions: by hand, against the bank that is built of views, and refusals in words."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import capt
from capt.bank.exchange import COLUMNS
from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews

NAMES = ["cup", "jug", "vase"]
PROBS = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.5, 0.4]]
LABELS = [0, 0, 1, 2]  # right, taken for jug, taken for cup, taken for jug
PATHS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def made(**keys):
    return ConfusionBank.from_predictions(LABELS, PROBS, NAMES, PATHS, **keys)


def test_by_hand():
    bank = made()
    assert bank.counts.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert bank.top_pairs(3) == [("cup", "jug", 2.0), ("jug", "vase", 1.0)]
    assert (len(bank), bank.num_confused, bank.has_tokens) == (3, 3, False)
    rows = bank.rows()
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert [row["image"] for row in rows] == ["c.jpg", "d.jpg", "b.jpg"]  # 8/9, 8/9, 4/9: the most torn first
    first = {key: value for key, value in rows[0].items() if isinstance(value, float)}
    assert first == pytest.approx({"p_label": 0.4, "p_pseudo_label": 0.5, "intensity": 8 / 9}, abs=1e-6)
    assert (rows[0]["label"], rows[0]["pseudo_label"], rows[0]["rival"]) == ("jug", "cup", "cup")
    assert (rows[0]["is_error"], rows[0]["view"]) == (True, 0)


def test_near_misses_are_filed_under_the_runner_up():
    rows = {row["image"]: row for row in made(near_misses=0.5).rows()}
    assert len(rows) == 4
    near = rows["a.jpg"]
    assert (near["label"], near["pseudo_label"], near["rival"], near["is_error"]) == ("cup", "cup", "jug", False)
    assert near["intensity"] == pytest.approx(2 * 0.3 / 0.9, abs=1e-6)


@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 10**6))
def test_it_is_the_bank_of_the_same_views(num_classes, num_images, seed):
    source = np.random.RandomState(seed)
    probs = source.dirichlet(np.ones(num_classes), num_images)
    labels = source.randint(0, num_classes, num_images)
    names, paths = [f"class {c}" for c in range(num_classes)], [f"{i}.jpg" for i in range(num_images)]
    ours = ConfusionBank.from_predictions(labels, probs, names, paths, near_misses=0.2)
    views = JudgedViews.of(torch.from_numpy(probs), torch.from_numpy(labels), torch.zeros(num_images, 4))
    built = ConfusionBank.build(names, paths, [views], near_misses=0.2)
    assert torch.equal(ours.counts, built.counts)
    assert ours.rows() == built.rows()
    taken = probs.astype(np.float32).argmax(1)
    errors = {(row["image"], row["label"], row["pseudo_label"]) for row in ours.rows() if row["is_error"]}
    assert errors == {(paths[i], names[labels[i]], names[taken[i]]) for i in np.flatnonzero(taken != labels)}


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_forms_of_the_triple(kind):
    expected = made().rows()
    assert ConfusionBank.from_predictions(kind(LABELS), kind(PROBS), NAMES, PATHS).rows() == expected
    named = [NAMES[label] for label in LABELS]
    assert ConfusionBank.from_predictions(named, kind(PROBS), tuple(NAMES), PATHS).rows() == expected


def test_names_that_look_wrong_are_said():
    """Four cups and four jugs, each taken for the other."""
    labels, taken = [0] * 4 + [1] * 4, [1] * 4 + [0] * 4
    probs = np.full((8, 3), 0.1)
    probs[range(8), taken] = 0.8
    bank = ConfusionBank.from_predictions(labels, probs, NAMES, list("abcdefgh"))
    assert bank.notes == ["cup and jug: names swapped? Most of each are taken for the other"]


def test_it_is_stored_and_read_again(tmp_path):
    bank = made(near_misses=0.0)
    bank.save(tmp_path)
    again = capt.ConfusionBank.load(tmp_path)
    assert again.rows() == bank.rows()
    assert torch.equal(again.counts, bank.counts)
    assert again.fingerprint == {"source": "predictions"}
    assert again.merge(again).counts.sum() == 2 * bank.counts.sum()


def test_what_needs_features_says_so():
    bank, one = made(), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="this bank was made of predictions and keeps no features of images"):
        bank.retrieve(torch.zeros(1, 0), one, one.unsqueeze(1) + 1, one - 1, 2)


def test_a_bank_without_errors_is_empty():
    bank = ConfusionBank.from_predictions([0], [[0.9, 0.1]], ["cup", "jug"], ["a.jpg"])
    assert (len(bank), bank.rows(), bank.top_pairs()) == (0, [], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pred_probs": [[0.5, 0.5]] * 4}, r"pred_probs must be \(M, 3\) for 3 class_names, got \(4, 2\)"),
        ({"pred_probs": [0.5, 0.5]}, r"pred_probs must be \(M, 3\)"),
        ({"pred_probs": PROBS[:3]}, "a row for each of paths, at least one; got 3, 4"),
        ({"pred_probs": np.zeros((0, 3)), "paths": []}, "at least one; got 0, 0"),
        ({"pred_probs": [*PROBS[:3], [3.0, 1.0, -2.0]]}, "confidences that sum to 1, row 3 is not; take the softmax"),
        ({"pred_probs": [PROBS[0], [np.nan] * 3, *PROBS[2:]]}, "row 1 is not"),
        ({"labels": LABELS[:2]}, r"labels must be \(4,\), one for each of paths, got \(2,\)"),
        ({"labels": [0, 1, 2, 3]}, r"whole numbers from 0 to 2, got 0 to 3 \(int64\)"),
        ({"labels": [0, 1, 2, -1]}, "whole numbers from 0 to 2, got -1 to 2"),
        ({"labels": [0.0, 1.0, 2.0, 0.0]}, r"whole numbers from 0 to 2, got 0.0 to 2.0 \(float64\)"),
        ({"labels": ["cup", "jug", "mug", "cup"]}, "labels must be of class_names, which has no 'mug'"),
    ],
)
def test_what_does_not_fit_is_said(change, words):
    triple = {"labels": LABELS, "pred_probs": PROBS, "class_names": NAMES, "paths": PATHS} | change
    with pytest.raises(ValueError, match=words):
        ConfusionBank.from_predictions(**triple)
