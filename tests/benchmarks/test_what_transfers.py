"""The forms of a systematic part, on numbers that are drawn or worked by hand."""

import pytest
import torch
from run_features import Classes
from torch.nn.functional import normalize
from transferring_forms import KernelBias, LinearMap, Shift, Sight, Unchanged, Vote
from what_transfers import chosen, forms_beside

CLASSES, DIM, SHOTS = 8, 16, 12


@pytest.fixture
def sight():
    """Images that lie near the text of their class, all of them moved by one bias."""
    generator = torch.Generator().manual_seed(0)
    texts = normalize(torch.randn(CLASSES, DIM, generator=generator), dim=1)
    label = torch.arange(CLASSES).repeat_interleave(SHOTS)
    noise = 0.15 * torch.randn(len(label), DIM, generator=generator)
    z = normalize(texts[label] + noise - 1.5 * texts[:2].sum(dim=0), dim=1)
    difference = normalize(torch.randn(CLASSES, CLASSES, DIM, generator=generator), dim=-1)
    known = torch.zeros(CLASSES, CLASSES, dtype=torch.bool)
    return Sight(z, label, Classes([f"c{i}" for i in range(CLASSES)], texts, difference, difference, known), 30.0)


def test_held_out_classes_choose_the_shift_that_was_planted(sight):
    choice = chosen(Shift(), Unchanged(), sight, seed=1)
    assert choice.strength is not None
    assert choice.gain > 5


def test_a_form_that_changes_nothing_is_not_chosen(sight):
    assert chosen(Unchanged(), Unchanged(), sight, seed=1).strength is None


@pytest.mark.parametrize("penalty", [0.1, None])
def test_every_form_beside_the_shift_begins_there(sight, penalty):
    expected = (Unchanged() if penalty is None else Shift((penalty,))).fit(sight)(sight)
    for form in (KernelBias(5.0, penalty, (1e9,)), LinearMap(penalty, (1e9,)), Vote(penalty, False, True, 3, (0.0,))):
        assert torch.allclose(form.fit(sight)(sight), expected, atol=2e-3), form


def test_all_strengths_at_once_are_those_of_one_at_a_time(sight):
    for form in forms_beside(0.1).values():
        together = form.fit(sight)(sight)
        alone = form.at(form.strengths[2]).fit(sight)(sight)[0]
        assert torch.allclose(together[2], alone, atol=5e-3), form


def test_a_vote_moves_the_margin_of_a_described_pair_alone():
    eye = torch.eye(3)
    difference = torch.zeros(3, 3, 3)
    difference[0, 1], difference[1, 0] = eye[0], eye[1]  # D[0|1], D[1|0]
    difference[0, 2] = eye[0]
    described = torch.zeros(3, 3, dtype=torch.bool)
    described[0, 1] = described[1, 0] = True
    z = torch.tensor([[0.8, 0.6, 0.0]])
    sight = Sight(z, torch.tensor([0]), Classes(["a", "b", "c"], eye, difference, difference, described), 10.0)
    scores = Vote(None, True, False, 2, (0.5,)).fit(sight)(sight)[0, 0]
    assert torch.allclose(scores, torch.tensor([0.8, 0.6 - 0.5 * (0.8 - 0.6), 0.0]))
    scores = Vote(None, False, False, 2, (0.5,)).fit(sight)(sight)[0, 0]
    assert torch.allclose(scores, torch.tensor([0.8, 0.5, -0.5 * 0.8]))
