"""Eq. 7 by hand and against a loop; mined pairs in order; few classes."""

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.capt.bank.pair_features import PairFeatures
from trainers.capt.method.semantic_miner import (
    MinedViews,
    SemanticConfusionMiner,
    confusion_scores,
    mine_pairs,
)

PROBS = torch.tensor([[0.5, 0.2, 0.18, 0.12]])  # t = 0
COUNTS = torch.tensor([[0.0, 9, 0, 0], [1, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])  # n[2, 0] = 3: class 2 taken for 0


def test_scores_by_hand():
    # Column 0 holds 1, 3, 0 of classes 1, 2, 3; their sum is 4.
    expected = torch.tensor([[-torch.inf, 1.25 * 0.2, 1.75 * 0.18, 0.12]])
    torch.testing.assert_close(confusion_scores(PROBS, torch.tensor([0]), COUNTS), expected)


def test_scores_counted_both_ways_by_hand():
    # n[j, 0] + n[0, j]: 1 + 9, 3 + 0, 0; the sum is 13.
    expected = torch.tensor([[-torch.inf, (1 + 10 / 13) * 0.2, (1 + 3 / 13) * 0.18, 0.12]])
    torch.testing.assert_close(confusion_scores(PROBS, torch.tensor([0]), COUNTS, symmetric=True), expected)


def test_nothing_counted_means_factor_one():
    scores = confusion_scores(PROBS, torch.tensor([3]), COUNTS)  # nothing was ever taken for class 3
    assert scores.tolist()[0][:3] == PROBS.tolist()[0][:3]


def test_pairs_by_hand():
    pairs = mine_pairs(PROBS, COUNTS, 2)
    assert pairs.target.tolist() == [0]
    assert pairs.partners.tolist() == [[2, 1]]  # 0.315 before 0.25, though p says the other way round
    torch.testing.assert_close(pairs.scores, torch.tensor([[0.315, 0.25]]))
    assert mine_pairs(PROBS, torch.zeros(4, 4), 2).partners.tolist() == [[1, 2]]


def test_more_places_than_classes():
    pairs = mine_pairs(PROBS, COUNTS, 5)
    assert pairs.partners.tolist() == [[2, 1, 3, 0, 0]]
    assert pairs.valid.tolist() == [[True, True, True, False, False]]
    assert pairs.scores[0, 3:].tolist() == [0, 0]


@pytest.mark.parametrize("num_classes", [1, 2])
def test_few_classes(num_classes):
    probs = torch.rand(3, num_classes, generator=tiny_capt.generator()).softmax(-1)
    pairs = mine_pairs(probs, torch.zeros(num_classes, num_classes), 3)
    assert pairs.valid.sum(dim=1).tolist() == [num_classes - 1] * 3
    if num_classes == 2:
        assert torch.equal(pairs.partners[:, 0], 1 - pairs.target)
    assert torch.isfinite(pairs.scores).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 6), st.booleans())
def test_against_a_loop(seed, num_classes, num_pairs, symmetric):
    source = tiny_capt.generator(seed)
    probs = torch.rand(3, num_classes, generator=source).softmax(-1)
    counts = torch.randint(3, (num_classes, num_classes), generator=source).float().fill_diagonal_(0)
    pairs = mine_pairs(probs, counts, num_pairs, symmetric)
    for b in range(3):
        t = max(range(num_classes), key=lambda c: float(probs[b, c]))
        n = [float(counts[j, t]) + (float(counts[t, j]) if symmetric else 0) for j in range(num_classes)]
        factor = [1 + (n[j] / sum(n) if sum(n) else 0) for j in range(num_classes)]
        scores = {j: factor[j] * float(probs[b, j]) for j in range(num_classes) if j != t}
        order = sorted(scores, key=lambda j: -scores[j])[:num_pairs]
        assert int(pairs.target[b]) == t
        found = pairs.partners[b][pairs.valid[b]].tolist()
        assert len(found) == len(order)
        assert [round(scores[j], 5) for j in found] == [round(scores[j], 5) for j in order]
        assert t not in found


def test_features_are_those_of_the_pair():
    difference, commonality = torch.randn(2, 4, 4, 6, generator=tiny_capt.generator())

    def encode(pairs, title):
        t, j = torch.tensor([[int(name) for name in pair] for pair in pairs]).t()
        return difference[t, j], commonality[t, j], {}

    miner = SemanticConfusionMiner(4)
    miner.set_classes(COUNTS, PairFeatures(list("0123"), encode, 6))
    mined = miner.mine(PROBS)
    pairs = miner(mined, torch.tensor([[True, True, False, True]]))
    assert torch.equal(pairs.difference[0, 0], difference[0, 2])  # D[t|j] at [t, j]: directed
    assert torch.equal(pairs.commonality[0, 1], commonality[0, 1])
    assert not pairs.difference[0, 2].any()  # nobody wanted it
    assert not pairs.difference[0, 3].any()  # the place that no class fills
    assert len(miner.features) == 2
    assert not list(miner.parameters())


def test_views_bring_their_pairs_along():
    source = tiny_capt.generator()
    probs = torch.rand(6, 5, generator=source).softmax(-1)
    views = MinedViews(6, 3, torch.device("cpu"))
    first, then = torch.tensor([4, 0, 2]), torch.tensor([0, 4])
    assert views.of(first) is None
    views.keep(first, mine_pairs(probs[first], torch.zeros(5, 5), 3))
    found, expected = views.of(then), mine_pairs(probs[then], torch.zeros(5, 5), 3)
    assert all(torch.equal(value, getattr(expected, name)) for name, value in vars(found).items())
    assert views.of(torch.tensor([0, 1])) is None  # one of the two is new
