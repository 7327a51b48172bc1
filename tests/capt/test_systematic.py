"""The systematic shift: its fit by hand and against torch's optimiser, and its choice by held-out classes."""

import math

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from trainers.capt.method import shift_choice, systematic
from trainers.capt.method.held_out_classes import HeldOutChoice
from trainers.capt.method.shift_choice import PENALTIES, choose_penalty, set_shift
from trainers.capt.method.systematic import TEMPERATURE_PENALTY, SystematicShift, _Problem, fit_shift
from trainers.capt.run.feature_cache import ViewBatch

SOME_PENALTIES = [4.0, 0.5, 0.02]


def biased(seed=0, num_classes=6, dim=8, per_class=9, bias=0.4, noise=0.5):
    """Noisy images of random classes, all of them pushed along one direction: labels that a shift explains."""
    source = tiny_capt.generator(seed + 100)
    texts = tiny_capt.unit(num_classes, dim, seed=seed)
    label = torch.arange(num_classes * per_class) % num_classes
    push = bias * tiny_capt.unit(1, dim, seed=seed + 1)
    z = normalize(texts[label] + push + noise * torch.randn(len(label), dim, generator=source), dim=-1)
    return z, label, texts


# The fit


def test_a_case_by_hand():
    """Two classes with texts (1, 0) and (0, 1), eight images at (4, 3) / 5 and eight at (3, 4) / 5.

    With b = w (T_0 - T_1), class 0 has the probability sigma(b + tau / 5) at the first place and sigma(b - tau / 5) at
    the second. Only w along T_0 - T_1 says anything, so |w|^2 = b^2 / 2, and the penalty r / (2 C) |w|^2 = r b^2 / 8.
    The loss is lowest where its derivatives by b and by tau vanish, with labels of class 0 in shares p and q:

        (sigma(b + tau / 5) - p + sigma(b - tau / 5) - q) / 2 + r b / 4 = 0
        sigma(b + tau / 5) - p - (sigma(b - tau / 5) - q) = 0

    p = 7 / 8, q = 5 / 8 and r = 1 / ln 3 are solved by b = tau / 5 = ln(3) / 2, where the sigmas are 3 / 4 and 1 / 2.
    Then v = w / tau = b / 2 (1, -1) / tau = (1, -1) / 10.
    """
    z = torch.tensor([[0.8, 0.6]] * 8 + [[0.6, 0.8]] * 8)
    label = torch.tensor([0] * 7 + [1] + [0] * 5 + [1] * 3)
    for scale in (1.0, 5.0, 100.0):  # of the start alone
        v = fit_shift(z, label, torch.eye(2), [1 / math.log(3)], scale)
        torch.testing.assert_close(v, torch.tensor([[0.1, -0.1]]), rtol=0, atol=1e-5)


def loss_of(tau, w, z, label, texts, penalty):
    """What the docstring of fit_shift says, in (tau, w) and float64."""
    logits = (tau * z.double() + w) @ texts.double().t()
    return cross_entropy(logits, label) + penalty / (2 * len(texts)) * w.square().sum()


def shift_by_lbfgs(z, label, texts, penalty):
    tau = torch.tensor(10.0, dtype=torch.double, requires_grad=True)
    w = torch.zeros(z.shape[1], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [tau, w], max_iter=300, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(tau, w, z, label, texts, penalty)
        loss.backward()
        return loss

    optimizer.step(closure)
    return (w / tau).detach().float()


@pytest.mark.parametrize("shape", [(6, 8), (9, 4), (2, 5)])  # more width than classes, fewer, and two classes
def test_against_lbfgs(shape):
    z, label, texts = biased(1, *shape)
    fitted = fit_shift(z, label, texts, SOME_PENALTIES, 10.0)
    for v, penalty in zip(fitted, SOME_PENALTIES, strict=True):
        torch.testing.assert_close(v, shift_by_lbfgs(z, label, texts, penalty), rtol=1e-3, atol=1e-4)


def test_all_penalties_at_once_are_each_alone():
    z, label, texts = biased()
    alone = [fit_shift(z, label, texts, [penalty], 10.0)[0] for penalty in PENALTIES]
    torch.testing.assert_close(fit_shift(z, label, texts, PENALTIES, 10.0), torch.stack(alone), rtol=1e-3, atol=1e-4)


def test_the_loss_is_flat_where_the_fit_ends():
    z, label, texts = biased()
    for v, penalty in zip(fit_shift(z, label, texts, SOME_PENALTIES, 10.0), SOME_PENALTIES, strict=True):
        taus = torch.logspace(-1, 3, 4001, dtype=torch.double)  # the temperature that v goes with, thrown away
        best = min(taus, key=lambda tau: float(loss_of(tau, tau * v.double(), z, label, texts, penalty)))
        w = (best * v.double()).requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(best, w, z, label, texts, penalty), w)
        (at_nought,) = torch.autograd.grad(loss_of(best, 0 * w, z, label, texts, penalty), w, allow_unused=True)
        assert slope.norm() < 2e-3 * max(1.0, float(at_nought.norm()))


@pytest.mark.parametrize(("penalty", "num_classes"), [(0.05, 6), (0.4, 6), (0.4, 30)])  # more axes, and far fewer
def test_slope_and_curvature_are_those_of_autograd(penalty, num_classes):
    z, label, texts = biased(3, num_classes)
    z, texts = z.double(), texts.double()
    design = texts - texts.mean(dim=0)  # any axes will do
    theta = torch.randn(1 + z.shape[1], generator=tiny_capt.generator(4), dtype=torch.double)
    problem = _Problem(z @ texts.t(), label, design, 10.0)

    def loss(point):
        logits = point[0] * z @ texts.t() + point[1:] @ design.t()
        restrained = TEMPERATURE_PENALTY / 2 * (point[0] / 10 - 1) ** 2
        return cross_entropy(logits, label) + penalty / 2 * point[1:] @ point[1:] + restrained

    assert problem.loss(theta, penalty) == pytest.approx(float(loss(theta)))
    curvature, slope = problem.curvature_and_slope(theta, penalty)
    torch.testing.assert_close(slope, torch.autograd.functional.jacobian(loss, theta))
    torch.testing.assert_close(curvature, torch.autograd.functional.hessian(loss, theta), atol=2e-9, rtol=1e-7)


@pytest.mark.parametrize("num_classes", [6, 30])
def test_some_images_at_a_time_are_all_images(num_classes, monkeypatch):
    z, label, texts = biased(3, num_classes)
    whole = fit_shift(z, label, texts, SOME_PENALTIES, 10.0)
    monkeypatch.setattr(systematic, "CELLS_AT_A_TIME", 7 * num_classes)  # the last piece is smaller
    torch.testing.assert_close(fit_shift(z, label, texts, SOME_PENALTIES, 10.0), whole, rtol=1e-5, atol=1e-6)


def test_a_step_is_halved_until_the_loss_falls():
    """Too long a step is taken in part; one uphill, or to no number, not at all."""
    z, label, texts = biased()
    design = (texts - texts.mean(dim=0)).double()
    problem = _Problem(z @ texts.t(), label, design, 10.0)
    theta = torch.zeros(1 + z.shape[1], dtype=torch.double)
    theta[0] = 10.0
    value = problem.loss(theta, 0.1)
    _, slope = problem.curvature_and_slope(theta, 0.1)

    def taken(step):
        return problem._line_search(theta, step, value, 0.1)

    moved, lower = taken(1e4 * slope)
    assert moved[0] > 0
    assert value > lower == problem.loss(moved, 0.1)
    share = (theta - moved)[1:] / (1e4 * slope)[1:]
    torch.testing.assert_close(share.log2().round(), share.log2(), atol=1e-3, rtol=0)  # a power of a half
    for step in (-slope, torch.full_like(slope, float("nan"))):
        assert torch.equal(taken(step)[0], theta)
        assert taken(step)[1] == value


def test_the_temperature_stays_positive():
    """Labels that CLIP holds for the least likely would be best explained by a negative one."""
    z, _, texts = biased()
    cosines = z @ texts.t()
    problem = _Problem(cosines, cosines.argmin(dim=1), (texts - texts.mean(dim=0)).double(), 10.0)
    start = torch.zeros(1 + z.shape[1], dtype=torch.double)
    start[0] = 10.0
    assert problem.minimum(100.0, start)[0] > 0


def test_a_larger_penalty_leaves_a_shorter_shift():
    z, label, texts = biased()
    lengths = fit_shift(z, label, texts, PENALTIES, 10.0).norm(dim=1)
    assert (lengths.diff() > 0).all()  # the penalties fall
    assert lengths[0] < 0.2 * lengths[-1]


def test_the_shift_lies_among_the_differences_of_the_texts():
    z, label, texts = biased(num_classes=4, dim=9)
    v = fit_shift(z, label, texts, SOME_PENALTIES, 10.0)
    axes = torch.linalg.qr((texts[1:] - texts[0]).t()).Q  # (D, 3)
    torch.testing.assert_close(v @ axes @ axes.t(), v, rtol=0, atol=1e-5)
    assert (v.norm(dim=1) > 0.01).all()


def test_what_all_texts_share_does_not_matter():
    z, label, texts = biased()
    shared = fit_shift(z, label, texts + 0.7 * tiny_capt.unit(1, 8, seed=9), SOME_PENALTIES, 10.0)
    torch.testing.assert_close(shared, fit_shift(z, label, texts, SOME_PENALTIES, 10.0), rtol=0, atol=1e-4)


def test_equal_texts_leave_nothing_to_fit():
    z, label, texts = biased()
    v = fit_shift(z, label, texts[:1].expand(6, -1), SOME_PENALTIES, 10.0)
    torch.testing.assert_close(v, torch.zeros(3, 8), rtol=0, atol=1e-9)


def test_labels_that_are_all_right_give_a_finite_shift():
    texts = tiny_capt.unit(4, 8)
    v = fit_shift(texts, torch.arange(4), texts, PENALTIES, 100.0)  # no loss is too low for some tau
    assert torch.isfinite(v).all()


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**4), st.permutations(range(6)))
def test_order_of_classes_does_not_matter(seed, order):
    z, label, texts = biased(seed)
    names = ["cup", "jug", "vase", "otter", "kite", "fox"]
    place = torch.tensor(order).argsort()  # where each class has gone
    turned = z, place[label], texts[order]
    expected = fit_shift(z, label, texts, SOME_PENALTIES, 10.0)
    torch.testing.assert_close(fit_shift(*turned, SOME_PENALTIES, 10.0), expected, rtol=0, atol=1e-5)
    choice = choose_penalty(z, label, label >= 0, texts, names, 10.0, tiny_capt.generator(seed))
    other = choose_penalty(
        *turned[:2], label >= 0, turned[2], [names[c] for c in order], 10.0, tiny_capt.generator(seed)
    )
    assert other.strength == choice.strength
    assert (other.gain, other.error) == pytest.approx((choice.gain, choice.error), abs=1e-3)


# The module


def test_no_shift_gives_back_the_feature():
    z = tiny_capt.unit(5, 16)
    assert torch.equal(SystematicShift(16)(z), z)


def test_a_shift_by_hand():
    systematic = SystematicShift(2)
    systematic.shift.copy_(torch.tensor([-0.8, 0.0]))
    torch.testing.assert_close(systematic(torch.tensor([[0.8, 0.6]])), torch.tensor([[0.0, 1.0]]))
    assert not list(systematic.parameters())  # fitted, not trained


# The choice


def test_a_common_bias_is_found_and_made_good():
    """Every other class has a plain name, and images of all classes look plain: a matter of no class in particular."""
    plain, label = torch.eye(9)[8], torch.arange(80) % 8
    side = torch.tensor([1.0, -1.0]).repeat(4).unsqueeze(1)
    texts = normalize(torch.eye(9)[:8] + 0.5 * side * plain, dim=-1)
    noise = 0.2 * torch.randn(80, 9, generator=tiny_capt.generator())
    z = normalize(texts[label] + 1.2 * plain + noise, dim=-1)
    choice = choose_penalty(z, label, label >= 0, texts, list("abcdefgh"), 10.0, tiny_capt.generator())
    assert choice.strength in PENALTIES
    assert choice.gain > 2 * choice.error
    v = fit_shift(z, label, texts, [choice.strength], 10.0)[0]
    assert v @ plain < -0.3
    assert ((z + v) @ texts.t()).argmax(dim=1).eq(label).sum() > (z @ texts.t()).argmax(dim=1).eq(label).sum() + 15


def test_nothing_is_chosen_where_every_image_is_right():
    texts = tiny_capt.unit(6, 8)
    label = torch.arange(6)
    choice = choose_penalty(texts, label, label >= 0, texts, list("abcdef"), 10.0, tiny_capt.generator())
    assert (choice.strength, choice.gain, choice.num_classes) == (None, 0.0, 6)


def served(base, classnames):
    base.set_classes(classnames)
    return base


def batch_of(z, label):
    index = torch.arange(len(z))
    return ViewBatch(z, None, None, label, index, torch.zeros_like(index))


def test_set_shift_chooses_by_the_judge_and_fits_to_the_base(base, monkeypatch, capsys):
    """The judge's features and texts choose; all views of the base are fitted."""
    module = "trainers.capt.method.shift_choice"
    seen = {}

    def choose(z, label, is_plain, texts, classnames, scale, generator):
        assert is_plain.all()  # view 0 alone was given
        seen["choose"] = z, label, texts, classnames
        return HeldOutChoice(PENALTIES, 5, 1.5, 0.5, 5)

    monkeypatch.setattr(f"{module}.choose_penalty", choose)
    names = tiny_capt.CLASSES
    served(base, names)
    judge = tiny_capt.build_base(base.prompted, tiny_capt.BaseSpec(template="{}"))
    served(judge, names)
    label = torch.arange(10) % 5
    views = [batch_of(tiny_capt.unit(10, 64, seed=seed), label) for seed in (1, 2)]
    judged = [batch_of(tiny_capt.unit(10, 64, seed=3), label)]
    systematic = SystematicShift(64)
    assert set_shift(systematic, base, views, judge, judged, seed=7).strength == PENALTIES[5]
    assert torch.equal(seen["choose"][0], judged[0].z)
    assert torch.equal(seen["choose"][2], judge.text_features)
    assert not torch.equal(judge.text_features, base.text_features)
    z = torch.cat([views[0].z, views[1].z])
    expected = fit_shift(z, label.repeat(2), base.text_features, [PENALTIES[5]], float(base.logit_scale))[0]
    assert torch.equal(systematic.shift, expected)
    assert expected.any()
    assert (
        capsys.readouterr().out
        == f"Systematic shift: penalty {PENALTIES[5]:.3g}, +1.50 ± 0.50 points on 5 held-out classes\n"
    )


def test_set_shift_leaves_it_where_nothing_is_chosen(base, monkeypatch, capsys):
    monkeypatch.setattr(
        "trainers.capt.method.shift_choice.choose_penalty", lambda *_: HeldOutChoice(PENALTIES, None, -0.5, 0.1, 5)
    )
    served(base, tiny_capt.CLASSES)
    views = [batch_of(tiny_capt.unit(10, 64), torch.arange(10) % 5)]
    systematic = SystematicShift(64)
    set_shift(systematic, base, views, base, views, seed=7)
    assert not systematic.shift.any()
    line = "Systematic shift: penalty none, the best gives -0.50 ± 0.10 points on 5 held-out classes\n"
    assert capsys.readouterr().out == line


def test_shots_that_are_told_apart_without_an_error_leave_a_finite_shift():
    """Their likelihood has no maximum: tau would grow without end."""
    texts = tiny_capt.unit(6, 8)
    shift = fit_shift(texts.repeat(4, 1), torch.arange(6).repeat(4), texts, PENALTIES, 10.0)
    assert shift.isfinite().all()


def test_fewer_images_where_memory_is_short(monkeypatch):
    z, label, texts = biased()
    whole = fit_shift(z, label, texts, SOME_PENALTIES, 10.0)
    monkeypatch.setattr(systematic, "MAX_CELLS", len(z) * len(texts))
    torch.testing.assert_close(fit_shift(z, label, texts, SOME_PENALTIES, 10.0), whole)
    monkeypatch.setattr(systematic, "MAX_CELLS", len(z) * len(texts) // 2)
    halved = fit_shift(z, label, texts, SOME_PENALTIES, 10.0)
    torch.testing.assert_close(halved, fit_shift(z[::2], label[::2], texts, SOME_PENALTIES, 10.0))


def test_the_choice_fits_to_fewer_images_of_many_classes(monkeypatch):
    z, label, texts = biased(num_classes=8)
    seen = []
    monkeypatch.setattr(shift_choice, "fit_shift", lambda *given: seen.append(given) or fit_shift(*given))
    monkeypatch.setattr(shift_choice, "MAX_CELLS", len(z) // 2 * 4 // 3)  # four classes are fitted to
    choose_penalty(z, label, label >= 0, texts, list("abcdefgh"), 10.0, tiny_capt.generator())
    assert {len(features) for features, *_ in seen} == {len(z) // 2 // 3}
    assert all(len(features) == len(labels) for features, labels, *_ in seen)
