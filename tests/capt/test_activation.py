"""QuickGELU in place: to the last bit that of OpenAI's package, whose modules it takes the place of."""

from __future__ import annotations

import pytest
import torch
from clip.model import QuickGELU as Stock
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainers.capt.backbone import activation
from trainers.capt.backbone.activation import PIECE, QuickGELU, lighten
from trainers.capt.backbone.load import load_clip
from trainers.capt.backbone.prompted_clip import PromptedCLIP


@settings(max_examples=60, deadline=None)
@given(
    length=st.one_of(st.integers(0, 300), st.integers(PIECE - 9, PIECE + 9), st.just(2 * PIECE + 77)),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_it_is_the_stock_one_to_the_last_bit(length, scale, dtype, seed):
    x = (scale * torch.randn(length, generator=torch.Generator().manual_seed(seed))).to(dtype)
    with torch.no_grad():
        expected = Stock()(x.clone())
        assert torch.equal(QuickGELU()(x), expected)
        assert torch.equal(x, expected)  # in place


def test_values_worked_by_hand_and_those_that_are_no_numbers():
    x = torch.tensor([0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan")])
    with torch.no_grad():
        y = QuickGELU()(x)
    assert y[:3].tolist() == pytest.approx([0, 0.845796, -0.154204], abs=1e-6)  # x / (1 + exp(-1.702 x))
    assert y[3] == float("inf")
    assert y[4:].isnan().all()  # -inf times 0, as in OpenAI's


@pytest.mark.parametrize("swapped", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_layouts_stay_as_they_are(swapped):
    x = torch.randn(5, 7, 6).permute(swapped)
    with torch.no_grad():
        expected = Stock()(x.clone())
        y = QuickGELU()(x)
    assert torch.equal(y, expected)
    assert y.stride() == x.stride() == Stock()(x).stride()


def test_with_gradients_the_input_is_kept():
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    assert torch.equal(QuickGELU()(x), Stock()(x))
    assert torch.equal(x.detach(), before)
    assert torch.autograd.gradcheck(QuickGELU(), x)
    assert torch.equal(QuickGELU()(x.detach()), Stock()(before))  # a frozen tower within a step that is trained
    assert torch.equal(x.detach(), before)


@torch.no_grad()
def test_a_clips_features_are_those_of_the_stock_modules(small_clip):
    light = PromptedCLIP(load_clip(str(small_clip)))
    stock = PromptedCLIP(load_clip(str(small_clip)))
    places = [name for name, module in light.named_modules() if type(module) is QuickGELU]
    assert len(places) == len(light.clip.visual.transformer.resblocks) + len(light.clip.transformer.resblocks)
    for name in places:
        stock.set_submodule(name, Stock())
    assert list(light.state_dict()) == list(stock.state_dict())
    images = torch.rand(3, 3, light.input_size, light.input_size)
    for one, other in zip(
        vars(light.encode_image(images)).values(), vars(stock.encode_image(images)).values(), strict=True
    ):
        assert one is other is None or torch.equal(one, other)
    texts = ["a photo of a cup", "a mug"]
    assert torch.equal(light.text_features(texts), stock.text_features(texts))


class Other(nn.Module):
    """What a fork might call by the same name."""

    def forward(self, x):
        return x * torch.sigmoid(1.7 * x)


def test_only_what_computes_the_same_is_replaced():
    for made, stock, expected in [(Stock, Stock, QuickGELU), (Other, Other, Other), (Stock, None, Stock)]:
        mlp = nn.Sequential()
        mlp.add_module("gelu", made())
        lighten(nn.ModuleList([mlp]), stock)
        assert type(mlp.gelu) is expected
    alone = nn.Module()
    alone.gelu = Stock()
    lighten(alone, Stock)
    assert type(alone.gelu) is Stock  # its input may be somebody else's


def test_the_pieces_are_small(monkeypatch):
    monkeypatch.setattr(activation, "PIECE", 4)
    x = torch.randn(3, 7)
    with torch.no_grad():
        assert torch.equal(QuickGELU()(x.clone()), Stock()(x))
