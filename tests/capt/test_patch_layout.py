"""The layout of patch tokens: by hand, and what it is invariant to; the bank compares images by it."""

import pytest
import tiny_capt
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.capt.backbone.layout import CELLS, NUMBERS, layout_width, patch_layout
from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews


def tokens_of(num, side, width, seed=0):
    return torch.randn(num, side * side, width, generator=tiny_capt.generator(seed))


def test_by_hand():
    """Two channels leave one axis, (cos 45, cos 135): the difference of the channels over the root of 2."""
    tokens = torch.tensor([[[3.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 5.0]]])  # a grid of 2 x 2
    expected = torch.tensor([[2.0, 0.0, 0.0, -5.0]]) / 2**0.5
    torch.testing.assert_close(patch_layout(tokens), expected)


def test_cells_are_means_of_their_patches():
    tokens = tokens_of(3, 8, 40)
    grid = tokens.view(3, 8, 8, 40)
    layout = patch_layout(tokens).view(3, CELLS, CELLS, NUMBERS)
    alone = grid[:, 2:4, 6:8].mean(dim=(1, 2))  # the cell in the second row and the last column
    torch.testing.assert_close(layout[:, 1, 3], patch_layout(alone.unsqueeze(1)))


@given(st.integers(1, 9), st.integers(2, 80))
def test_its_width_is_what_is_said(side, width):
    assert patch_layout(tokens_of(2, side, width)).shape == (2, layout_width(side, width))


def test_tokens_of_no_square_grid():
    with pytest.raises(ValueError, match="6 patch tokens are no square grid; give TRAINER.CAPT.SAM.LAYOUT False"):
        patch_layout(torch.zeros(2, 6, 8))


def test_a_resnet_has_none():
    assert layout_width(None, None) == 0


def test_axes_are_orthonormal_so_that_a_vector_of_theirs_keeps_its_length():
    axes = patch_layout(torch.eye(100).unsqueeze(1))  # (100, 32), a channel at a time
    torch.testing.assert_close(axes.t() @ axes, torch.eye(NUMBERS), atol=1e-5, rtol=0)


def test_it_tells_left_from_right():
    """The same patches in other places: the class token may be the same, the layout is not."""
    tokens = tokens_of(1, 4, 64)
    mirrored = tokens.view(1, 4, 4, 64).flip(2).reshape(1, 16, 64)
    assert (patch_layout(tokens) - patch_layout(mirrored)).norm() > 1
    torch.testing.assert_close(tokens.mean(dim=1), mirrored.mean(dim=1))


def test_halves_are_read_in_single_precision():
    assert patch_layout(tokens_of(2, 4, 64).half()).dtype == torch.float32


# In the bank


def bank_of(layout):
    """Two images of class 0 and one of class 1 with the same class token, all taken for another class."""
    probs = torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.8, 0.2]])
    about = {"cls": torch.ones(3, 6), **({} if layout is None else {"layout": layout})}
    views = JudgedViews.of(probs, torch.tensor([0, 0, 1]), torch.eye(3), **about)
    return ConfusionBank.build(["cup", "jug"], ["a", "b", "c"], [views])


def nearest(bank, tokens):
    look = bank.look(torch.ones(1, 6), tokens)
    return bank.retrieve(look, torch.tensor([0]), torch.tensor([[1]]), torch.tensor([-1]), 1, True).entry[0, 0].item()


def test_images_with_equal_class_tokens_are_told_apart():
    tokens = tokens_of(3, 4, 6)
    bank = bank_of(patch_layout(tokens))
    assert [nearest(bank, tokens[i : i + 1]) for i in range(3)] == [0, 1, 2]
    blind = bank_of(None)
    assert [nearest(blind, tokens[i : i + 1]) for i in range(3)] == [0, 0, 0]


def test_a_stored_bank_compares_the_same(tmp_path):
    tokens = tokens_of(3, 4, 6)
    bank = bank_of(patch_layout(tokens))
    bank.save(tmp_path)
    loaded = ConfusionBank.load(tmp_path)
    assert torch.equal(loaded.filed.keys, bank.filed.keys)
    assert [nearest(loaded, tokens[i : i + 1]) for i in range(3)] == [0, 1, 2]


def test_a_bank_from_before_there_were_layouts():
    bank = bank_of(None)
    state = bank.state_dict()
    del state["layout"]
    old = ConfusionBank.from_state_dict(state, bank.classnames, bank.paths)
    assert torch.equal(old.filed.keys, bank.filed.keys)
    assert torch.equal(old.look(torch.ones(1, 6), tokens_of(1, 4, 6)), torch.ones(1, 6))


def test_patch_tokens_that_are_not_there():
    bank = bank_of(patch_layout(tokens_of(3, 4, 6)))
    with pytest.raises(ValueError, match="compares the layout of images, and the base model gives no patch tokens"):
        bank.look(torch.ones(1, 6), None)
