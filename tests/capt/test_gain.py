"""The gain of the corrections, chosen by leave-one-out."""

from types import SimpleNamespace

import pytest
import tiny_capt
import torch
from torch.nn.functional import cross_entropy

from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.method.experts import move
from trainers.capt.method.gain import SHARES, TEMPERATURES, fit_gain, smallest_as_good
from trainers.capt.run.feature_cache import ViewBatch


def views_of(base, num):
    base.set_classes(tiny_capt.CLASSES)
    z, cls, tokens = tiny_capt.encode(base, tiny_capt.images(num))
    label, index = torch.arange(num) % len(tiny_capt.CLASSES), torch.arange(num)
    return ViewBatch(z, cls, tokens, label, index, torch.zeros_like(index))


def bank_of(base, views):
    probs = base.logits(views.z).softmax(dim=-1)
    judged = JudgedViews.of(probs, views.label, views.z, cls=views.cls, tokens=views.tokens)
    return ConfusionBank.build(base.classnames, [f"{i}.png" for i in range(len(probs))], [judged], near_misses=0.0)


def test_against_every_gain_and_temperature(base):
    """One image after the other, by the model's own forward: the least gain that is as good as the likeliest."""
    views = views_of(base, 10)
    model = tiny_capt.make_model(base, bank=bank_of(base, views))
    gain, temperature = fit_gain(model, [views], views.index, 0.6)
    best = []  # the losses (10,) and the temperature of each gain, where their mean is least
    for share in SHARES:
        model.refiner.expert.gain.fill_(0.6 * share)
        with torch.no_grad():
            out = [model(*(x[i : i + 1] for x in (views.z, views.cls, views.tokens)), None, views.index[i : i + 1])
                   for i in range(10)]  # fmt: skip
        logits = torch.cat([o.logits for o in out])
        losses = {t: cross_entropy(logits / t, views.label, reduction="none") for t in TEMPERATURES}
        best.append(min(((loss, t) for t, loss in losses.items()), key=lambda pair: pair[0].mean()))
    winner, _ = min(best, key=lambda pair: pair[0].mean())
    as_good = [
        (0.6 * share, t)
        for share, (loss, t) in zip(SHARES, best, strict=True)
        if (loss - winner).mean() <= 2 * (loss - winner).std(correction=0) / 10**0.5 + 1e-7
    ]
    assert (gain, temperature) == pytest.approx(as_good[0])
    assert max(loss.mean() for loss, _ in best) > winner.mean() + 1e-3  # there was something to choose


def test_the_least_gain_within_two_standard_errors():
    """Of four images; the second row is 0.1 worse on each of them, which is beyond any error."""
    best = torch.tensor([1.0, 2.0, 3.0, 4.0])
    often = torch.tensor([0.3, 0.3, 0.3, 0.0])  # mean 0.225, error 0.13 / 2 = 0.065
    assert smallest_as_good(torch.stack([best + often, best + 0.1, best])) == 2
    once = torch.tensor([0.5, 0.0, 0.0, 0.0])  # mean 0.125, error 0.2165 / 2 = 0.108
    assert smallest_as_good(torch.stack([best + once, best + 0.1, best])) == 0
    assert smallest_as_good(best.repeat(3, 1)) == 0  # nothing to gain: no gain
    assert smallest_as_good(torch.tensor([[2.0], [1.0], [3.0]])) == 1  # one image has no error


def test_a_case_by_hand():
    """Texts are the axes, and every correction is (1, -1).

    An image of class 0 at (0.6, 0.8) is right from above 0.1 on, one of class 1 at (0.28, 0.96) as long as the gain is
    below 0.34. Of the gains 0, 0.1, 0.2, ... both are right at 0.2 and 0.3: with margins of 0.2 and 0.31 at 0.2, of
    0.39 and 0.09 at 0.3. The smaller one counts, and at 0.2 it is the larger. Either alone would choose more than 0.34,
    or 0.
    """
    correction = torch.tensor([[1.0, -1.0]])

    class Model:
        base = SimpleNamespace(logit_scale=torch.tensor(5.0))
        refiner = SimpleNamespace(
            systematic=lambda z: z, expert=SimpleNamespace(correct=lambda z, samples: (None, correction))
        )

        def __call__(self, *_, query_index):
            return SimpleNamespace(samples=None, texts=torch.eye(2))

    def view(z, label):
        nought = torch.zeros(1, dtype=torch.long)
        return ViewBatch(torch.tensor([z]), None, None, torch.tensor([label]), nought, nought)

    views = 50 * [view([0.6, 0.8], 0), view([0.28, 0.96], 1)]  # so many that errors are small
    assert fit_gain(Model(), views, torch.tensor([0]), 2.4)[0] == pytest.approx(0.2)
    assert fit_gain(Model(), views[::2], torch.tensor([0]), 2.4)[0] > 0.34
    assert fit_gain(Model(), views[1::2], torch.tensor([0]), 2.4)[0] == 0


def test_batches_add_up(base):
    views = views_of(base, 10)
    model = tiny_capt.make_model(base, bank=bank_of(base, views))
    parts = [ViewBatch(*(value[s] for value in vars(views).values())) for s in (slice(0, 3), slice(3, 10))]
    assert fit_gain(model, parts, views.index, 0.6) == fit_gain(model, [views], views.index, 0.6)


def test_texts_that_follow_the_image_are_encoded_once(base, monkeypatch):
    """And not for every gain anew: for a base like CoCoOp the text tower runs for each image and class."""
    views = views_of(base, 10)
    model = tiny_capt.make_model(base, bank=bank_of(base, views))
    plain = fit_gain(model, [views], views.index, 0.6)
    asked = []

    def follow(z):
        asked.append(z)
        return base.text_features.expand(len(z), -1, -1)

    monkeypatch.setattr(base, "text_features_for", follow)
    assert fit_gain(model, [views], views.index, 0.6) == pytest.approx(plain)
    assert len(asked) == 1


def test_own_entry_does_not_vote(base):
    """Alone in its class an image has no other entry of its label, and cannot be made likelier by itself."""
    views = views_of(base, 5)
    bank = bank_of(base, views)
    model = tiny_capt.make_model(base, bank=bank)
    out = model(views.z, views.cls, views.tokens, query_index=views.index)
    voters = bank.entries.index[out.samples.entry]
    assert not (voters[out.samples.valid] == views.index.unsqueeze(1).expand_as(voters)[out.samples.valid]).any()


def test_move_gives_back_what_is_not_moved():
    z = tiny_capt.unit(4, 8)
    assert torch.equal(move(z, torch.zeros_like(z)), z)
    torch.testing.assert_close(move(z, z), z)
    torch.testing.assert_close(move(z, tiny_capt.unit(4, 8, seed=1)).norm(dim=-1), torch.ones(4))
