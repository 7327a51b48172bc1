"""Resolved, introduced and net confusion by hand; scikit-learn as oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from trainers.capt.run.metrics import accuracies, confusable_pairs, confusion_matrix, confusion_report


def test_report_by_hand():
    #                 pair {0, 1}                     pair {2, 3}: too few errors
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 3])
    base = np.array([1, 1, 0, 0, 0, 1, 2, 3, 3])  # three errors inside {0, 1}; 1 -> 2 is outside
    method = np.array([0, 2, 1, 0, 1, 1, 1, 2, 2])  # two of them right, one still wrong; one new error inside
    report = confusion_report(labels, base, method, 4, min_errors=3)
    assert report.to_dict() == {
        "min_errors": 3,
        "num_pairs": 1,
        "base_errors": 3,
        "resolved": 66.67,
        "introduced": 33.33,
        "net": 33.33,
    }


def test_both_directions_count_together():
    matrix = np.array([[5, 2, 0], [1, 5, 2], [0, 0, 5]])
    assert confusable_pairs(matrix, 3).tolist() == [[False, True, False], [True, False, False], [False, False, False]]


def test_nothing_confused_has_no_share():
    report = confusion_report([0, 1], [0, 1], [1, 0], 2, min_errors=1)
    assert (report.num_pairs, report.resolved, report.introduced, report.net) == (0, None, None, None)


def test_bad_input():
    with pytest.raises(ValueError, match="labels and predictions differ in length"):
        confusion_report([0, 1], [0], [0, 1], 2)
    with pytest.raises(ValueError, match="min_errors must be at least 1, got 0"):
        confusion_report([0], [0], [0], 1, min_errors=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 60))
def test_against_scikit_learn_and_a_loop(seed, num_classes, num):
    source = np.random.default_rng(seed)
    labels, base, method = source.integers(num_classes, size=(3, num))
    matrix = metrics.confusion_matrix(labels, base, labels=range(num_classes))
    assert np.array_equal(confusion_matrix(labels, base, num_classes), matrix)
    plain, per_class = accuracies(labels, base)
    assert plain == pytest.approx(100 * metrics.accuracy_score(labels, base))
    present = np.unique(labels)
    recall = metrics.recall_score(labels, base, labels=present, average=None, zero_division=0)
    assert per_class == pytest.approx(100 * recall.mean())

    report = confusion_report(labels, base, method, num_classes, min_errors=2)
    pairs = {
        (a, b) for a in range(num_classes) for b in range(num_classes) if a != b and matrix[a, b] + matrix[b, a] >= 2
    }
    errors = [(y, m) for y, b, m in zip(labels, base, method, strict=True) if (y, b) in pairs]
    new = [1 for y, b, m in zip(labels, base, method, strict=True) if y == b and (y, m) in pairs]
    assert (report.num_pairs, report.base_errors) == (len(pairs) // 2, len(errors))
    if errors:
        assert report.resolved == pytest.approx(100 * sum(y == m for y, m in errors) / len(errors), abs=0.01)
        assert report.introduced == pytest.approx(100 * len(new) / len(errors), abs=0.01)
        assert report.net == pytest.approx(report.resolved - report.introduced, abs=0.011)
