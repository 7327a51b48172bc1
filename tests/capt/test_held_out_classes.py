"""Held-out classes: halves, gains and the one-standard-error rule, each by hand."""

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.capt.method.held_out_classes import HeldOutChoice, halvings, held_out_gains, one_standard_error


def names_of(num_classes):
    return [f"class {c:04d}" for c in range(num_classes)]


# Halves


@pytest.mark.parametrize("num_classes", [0, 1, 2, 3])
def test_fewer_than_four_classes_are_not_halved(num_classes):
    assert halvings(names_of(num_classes), tiny_capt.generator()) == []


@pytest.mark.parametrize(("num_classes", "times"), [(4, 20), (10, 20), (50, 20), (500, 2), (1000, 1), (2000, 1)])
def test_many_classes_need_few_halvings(num_classes, times):
    assert len(halvings(names_of(num_classes), tiny_capt.generator())) == 2 * times  # each half takes both parts


def test_of_an_odd_number_one_half_has_one_more():
    found = halvings(names_of(5), tiny_capt.generator())
    assert [tuple(map(len, pair)) for pair in found] == [(2, 3), (3, 2)] * 20
    for fitted, held in found:
        assert sorted([*fitted.tolist(), *held.tolist()]) == [0, 1, 2, 3, 4]
        assert fitted.tolist() == sorted(fitted.tolist())
        assert held.tolist() == sorted(held.tolist())
    for (a, b), (c, d) in zip(found[::2], found[1::2], strict=True):
        assert torch.equal(a, d)
        assert torch.equal(b, c)
    assert len({tuple(a.tolist()) for a, _ in found}) > 5  # drawn anew each time


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 12), st.randoms())
def test_the_halves_belong_to_the_names(seed, num_classes, random):
    names = names_of(num_classes)
    shuffled = random.sample(names, num_classes)
    for (a, b), (c, d) in zip(
        halvings(names, tiny_capt.generator(seed)), halvings(shuffled, tiny_capt.generator(seed)), strict=True
    ):
        assert {names[i] for i in a} == {shuffled[i] for i in c}
        assert {names[i] for i in b} == {shuffled[i] for i in d}


# Gains

# Classes 0, 1, 2, 3 have 1, 2, 1 and 3 images.
LABEL = torch.tensor([0, 1, 1, 2, 3, 3, 3])


def test_gains_by_hand():
    """Three strengths, four classes, two of them held out at a time.

    First half (fit on 0 and 1) holds out images 3, 4, 5, 6 of classes 2, 3, 3, 3; its strengths make of them

        strength 0    0   0  0  0      class 2:   0      class 3:  0
        strength 1    1   1  1  0      class 2: 100      class 3: 66.7
        strength 2   -1   1  0  0      class 2: -100     class 3: 33.3

    and the other half holds out images 0, 1, 2 of classes 0, 1, 1:

        strength 0    1   0  0         class 0: 100      class 1:  0
        strength 1    0   1  0         class 0:   0      class 1: 50
        strength 2    0  -1 -1         class 0:   0      class 1: -100
    """
    a, b = torch.tensor([0, 1]), torch.tensor([2, 3])
    better = {
        (0, 1, 2): torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 0], [-1, 1, 0, 0]]),
        (3, 4, 5, 6): torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, -1, -1]]),
    }
    asked = []

    def fit_and_compare(classes, rows):
        asked.append([part.tolist() for part in (*classes, *rows)])
        return better[tuple(rows[0].tolist())]

    gains = held_out_gains(LABEL, 4, [(a, b), (b, a)], fit_and_compare)
    assert asked == [[[0, 1], [2, 3], [0, 1, 2], [3, 4, 5, 6]], [[2, 3], [0, 1], [3, 4, 5, 6], [0, 1, 2]]]
    expected = torch.tensor([[100, 0, 0, 0], [0, 50, 100, 200 / 3], [0, -100, -100, 100 / 3]])
    torch.testing.assert_close(gains, expected)


def test_a_class_held_out_twice_is_averaged():
    halves = [(torch.tensor([0, 1]), torch.tensor([2, 3])), (torch.tensor([1, 2]), torch.tensor([0, 3]))]
    answers = iter([torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[0.0, 0, 0, -1]])])  # images 3-6, then 0 and 4-6
    gains = held_out_gains(LABEL, 4, halves, lambda *_: next(answers))
    torch.testing.assert_close(gains, torch.tensor([[0, 0, 100, (100 - 100 / 3) / 2]]))


# The one-standard-error rule


def chosen(*rows):
    return one_standard_error(torch.tensor(rows, dtype=torch.float))


def test_nothing_is_chosen_where_nothing_gains():
    assert chosen([0, 0, 0, 0], [-1, 1, 0, 0], [-2, 0, 0, 0]) is None


def test_the_best_alone_is_chosen_where_it_is_clear():
    assert chosen([0.0, 0, 0, 0], [1, 1, 1, 1], [3, 3, 3, 3]) == 2  # behind by 2 in every class: no error at all


def test_a_tie_goes_to_the_more_cautious():
    assert chosen([0.0, 0, 0, 0], [2, 2, 2, 2], [2, 2, 2, 2]) == 1


def test_the_most_cautious_within_one_error():
    # Means 1, 2, 2.5. Strength 0 is behind the best by 0, 0, 2, 4: 1.5, its error std (1.915) / 2 = 0.957: too far.
    # Strength 1 is behind by 0, 0, 2, 0: 0.5, its error std (1) / 2 = 0.5: within.
    assert chosen([2.0, 2, 0, 0], [2, 2, 0, 4], [2, 2, 2, 4]) == 1


def test_the_error_is_that_of_the_paired_difference():
    # The best gains 0, 4, 8, 12, with an error of 2.58 over the classes; the other is 1 behind in each of them, surely.
    assert chosen([-1.0, 3, 7, 11], [0, 4, 8, 12]) == 1


def test_what_does_not_gain_is_not_chosen_within_any_error():
    # Strength 0 is 1 +- 1 behind the best, within one error, but its own mean is 0.
    assert chosen([0.0, 0, 0, 0], [4, 0, 0, 0]) == 1


# What is said of it


def test_the_choice_by_hand():
    choice = HeldOutChoice.of([8.0, 0.25], torch.tensor([[0.0, 0, 0, 0], [1, 3, 1, 3]]))
    assert (choice.chosen, choice.strength, choice.gain, choice.num_classes) == (1, 0.25, 2.0, 4)
    assert choice.error == pytest.approx((4 / 3) ** 0.5 / 2)  # deviations of 1 around 2, three degrees of freedom
    assert str(choice) == "0.25, +2.00 ± 0.58 points on 4 held-out classes"
    expected = {"strength": 0.25, "held_out_gain": 2.0, "held_out_error": choice.error, "held_out_classes": 4}
    assert choice.to_dict() == expected


def test_where_nothing_gains_the_best_is_told():
    choice = HeldOutChoice.of([8.0, 0.25], torch.tensor([[-4.0, 0, 0, 0], [-1, -1, 0, 0]]))
    assert choice.strength is None
    assert str(choice) == "none, the best gives -0.50 ± 0.29 points on 4 held-out classes"
    assert choice.to_dict()["strength"] is None


def test_too_few_classes_are_told():
    choice = HeldOutChoice.of([8.0, 0.25], None)
    assert choice.strength is None
    assert str(choice) == "none, fewer than 4 classes cannot be held out from one another"
    assert choice.to_dict()["held_out_classes"] == 0
