"""Patch tokens that the bank takes from elsewhere, against a loop over the entries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.capt.bank.entry_tokens import HostTokens


@settings(max_examples=50, deadline=None)
@given(
    asked=st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 2)), max_size=9),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_cached_tokens_are_those_of_each_image_and_view_and_zero_for_padding(asked, dtype):
    tokens = torch.randn(5 * 3, 4, 2).to(dtype)
    before = tokens.clone()
    place, view = torch.tensor(asked, dtype=torch.long).reshape(-1, 2).unbind(1)
    view = view.where(place >= 0, 0)  # as the bank's padding has it
    found = HostTokens(tokens, 3).take(place, view)
    expected = [
        tokens[p * 3 + v] if p >= 0 else torch.zeros(4, 2, dtype=dtype) for p, v in zip(place, view, strict=True)
    ]
    assert torch.equal(found, torch.stack(expected) if expected else tokens[:0])
    assert torch.equal(tokens, before)  # what is cached is not written to


def test_an_image_that_the_cache_does_not_hold_is_refused():
    with pytest.raises(IndexError):
        HostTokens(torch.zeros(6, 4, 2), 3).take(torch.tensor([2]), torch.tensor([0]))
