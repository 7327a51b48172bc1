"""Pairs that steps meet are part of a run's state: what they were encoded together with decides their last digits."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "capt"))

from test_capt_end_to_end import _registered, build, files  # noqa: E402, F401


def begun(files, out):  # noqa: F811
    """A run before its first step, whose encoder gives every pair the number of pairs that it got at once."""
    trainer = build(files, out)
    trainer.before_train()
    dim = trainer.pairs.difference.shape[1]

    def encode(pairs, title=None):
        return (*(torch.full((len(pairs), dim), float(len(pairs))) for _ in range(2)), {})

    trainer.pairs.encode = encode
    trainer.before_epoch()
    return trainer


def unknown(trainer):
    known = {tuple(pair) for pair in trainer.pairs.known()[0].tolist()}
    num = len(trainer.pairs.classnames)
    return [(t, j) for t in range(num) for j in range(num) if t != j and (t, j) not in known]


def ask(trainer, pairs):
    target, partner = torch.tensor(pairs).t()
    return trainer.pairs(target, partner.unsqueeze(1), torch.ones(len(pairs), 1, dtype=torch.bool))


@pytest.fixture
def stopped(files, tmp_path):  # noqa: F811
    """A run in which a step has met two pairs that nobody had met before."""
    trainer = begun(files, tmp_path / "stopped")
    trainer.before_it = trainer.pairs.known()
    trainer.met = unknown(trainer)[:2]
    assert len(trainer.met) == 2
    ask(trainer, trainer.met)
    return trainer


def test_the_state_holds_what_steps_met_and_no_more(stopped):
    pairs, difference, commonality = stopped.run_state()["pairs"]
    assert [tuple(pair) for pair in pairs.tolist()] == stopped.met
    assert torch.equal(difference, torch.full_like(difference, 2.0))  # encoded by twos
    assert torch.equal(commonality, difference)
    assert len(pairs) + stopped.num_met_ahead == len(stopped.pairs)


def test_a_run_that_goes_on_has_them_as_they_were(stopped, files, tmp_path):  # noqa: F811
    torch.save(stopped.run_state(), tmp_path / "state.pt")
    resumed = begun(files, tmp_path / "resumed")
    resumed.restore_run_state(torch.load(tmp_path / "state.pt", weights_only=True))
    ask(resumed, stopped.met[:1])  # one alone would be encoded as 1.0
    for ours, theirs in zip(resumed.pairs.known(), stopped.pairs.known(), strict=True):
        assert torch.equal(ours, theirs)
    again = resumed.run_state()["pairs"]  # and the next state has them too
    assert [tuple(pair) for pair in again[0].tolist()] == stopped.met


def test_a_state_of_an_earlier_version_has_none(stopped, files, tmp_path):  # noqa: F811
    resumed = begun(files, tmp_path / "resumed")
    resumed.restore_run_state({"means": stopped.run_state()["means"]})
    assert len(resumed.pairs) == stopped.num_met_ahead
