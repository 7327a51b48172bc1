"""The losses by hand, against loops in float64 with gradients, and their masks."""

import math

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.capt.method.losses import balance_loss, confuse_loss, keep_loss, original_loss


def test_original_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0]])
    expected = (math.log(4) + math.log(5 / 4)) / 2  # -log(1/4), -log(4/5)
    assert original_loss(logits, torch.tensor([0, 0])).item() == pytest.approx(expected)


def test_confuse_loss_by_hand():
    """One query along x; texts along x, y and -x; one representative along y."""
    u = torch.tensor([[1.0, 0]])
    texts = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    rivals = torch.tensor([[1, 2]])
    everything = torch.ones(1, 2, dtype=torch.bool)
    args = (u, texts, torch.tensor([0]), rivals)
    representatives = torch.tensor([[[0.0, 1]]])
    loss = confuse_loss(*args, everything, representatives, everything[:, :1], torch.tensor(2.0))
    image_side = math.log(math.e**2 + 1 + math.e**-2) - 2
    text_side = math.log(math.e**2 + 1) - 2
    assert loss.item() == pytest.approx((image_side + text_side) / 2, rel=1e-6)


def test_masked_negatives_do_not_count():
    u, texts = tiny_capt.unit(3, 4), tiny_capt.unit(5, 4, seed=1)
    label, rivals = torch.tensor([0, 1, 2]), torch.tensor([[0, 3], [3, 1], [4, 2]])
    own = rivals == label[:, None]
    representatives = tiny_capt.unit(3, 2, 4, seed=2)
    loss = confuse_loss(u, texts, label, rivals, ~own, representatives, own, torch.tensor(3.0))
    elsewhere = rivals.masked_fill(own, 4)  # whatever stands in a masked place
    other = representatives.masked_fill(~own.unsqueeze(-1), 9.0)
    assert torch.equal(loss, confuse_loss(u, texts, label, elsewhere, ~own, other, own, torch.tensor(3.0)))


def test_no_negatives_at_all():
    u = tiny_capt.unit(2, 4).requires_grad_()
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    representatives = torch.zeros(2, 3, 4)
    rivals = torch.zeros(2, 3, dtype=torch.long)
    texts, label = tiny_capt.unit(2, 4), torch.tensor([0, 1])
    loss = confuse_loss(u, texts, label, rivals, nothing, representatives, nothing, torch.tensor(9.0))
    assert loss.item() == 0
    loss.backward()
    assert torch.isfinite(u.grad).all()


def naive_confuse(u, texts, label, rivals, rival_valid, reps, rep_valid, scale):
    total = 0
    for b in range(len(u)):
        own = texts[label[b]] if texts.dim() == 2 else texts[b, label[b]]
        positive = (scale * (u[b] @ own)).exp()
        below = [positive]
        for p in range(rivals.shape[1]):
            if rival_valid[b, p]:
                rival = texts[rivals[b, p]] if texts.dim() == 2 else texts[b, rivals[b, p]]
                below.append((scale * (u[b] @ rival)).exp())
        total = total - (positive / sum(below)).log() / 2
        below = [positive] + [(scale * (own @ reps[b, k])).exp() for k in range(reps.shape[1]) if rep_valid[b, k]]
        total = total - (positive / sum(below)).log() / 2
    return total / len(u)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_confuse_loss_and_gradients_against_a_loop(seed, batch, classes, places, k, per_image):
    source, dim = tiny_capt.generator(seed), 5
    u, reps = tiny_capt.unit(batch, dim, seed=seed), tiny_capt.unit(batch, k, dim, seed=seed + 1)
    texts = tiny_capt.unit(*((batch, classes, dim) if per_image else (classes, dim)), seed=seed + 2)
    label = torch.randint(classes, (batch,), generator=source)
    rivals = torch.randint(classes, (batch, places), generator=source)
    rival_valid = rivals != label[:, None]
    rep_valid = torch.rand(batch, k, generator=source) < 0.6
    fast_leaves = [u.clone().requires_grad_(), reps.clone().requires_grad_()]
    slow_leaves = [u.double().requires_grad_(), reps.double().requires_grad_()]
    fast = confuse_loss(fast_leaves[0], texts, label, rivals, rival_valid, fast_leaves[1], rep_valid, torch.tensor(4.0))
    slow = naive_confuse(slow_leaves[0], texts.double(), label, rivals, rival_valid, slow_leaves[1], rep_valid, 4.0)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-5)
    fast.backward()
    slow.backward()
    for a, b in zip(fast_leaves, slow_leaves, strict=True):
        expected = torch.zeros_like(b) if b.grad is None else b.grad  # no valid place: the loop never read it
        torch.testing.assert_close(a.grad.double(), expected, rtol=1e-3, atol=1e-4)


def test_balance_by_hand():
    assert balance_loss(torch.full((4, 3), 1 / 3)).item() == pytest.approx(1)
    assert balance_loss(torch.tensor([[1.0, 0, 0]] * 2)).item() == pytest.approx(3)
    assert balance_loss(torch.tensor([[1.0, 0], [0, 1]])).item() == pytest.approx(1)  # each to its own is balanced


def test_keep_by_hand():
    residual = torch.tensor([[3.0, 4], [0, 1]])
    assert keep_loss(residual).item() == pytest.approx((12.5 + 0.5) / 2)
    assert keep_loss(torch.zeros(2, 2)).item() == 0
