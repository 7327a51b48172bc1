"""Forks of CLIP whose modules return more than one tensor: what is meant is taken, what is not certain is refused."""

import copy
import sys
from pathlib import Path

import pytest
import tiny_capt
import torch
from torch import nn

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip
from trainers.capt.backbone.returned import sequence_of

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

TEXTS = ["otter", "a photo of a red fox in the snow."]


class Talkative(nn.Module):
    """A module that returns more than the one it stands for; ``more`` makes all of it from input and output."""

    def __init__(self, inner, more):
        super().__init__()
        self.inner, self.more = inner, more

    def __getattr__(self, name):
        if name in ("inner", "more"):
            return super().__getattr__(name)
        return getattr(self.inner, name)

    def forward(self, x):
        return self.more(x, self.inner(x))


def with_attention(x, output):
    """TextRefiner's: the attention map beside the sequence."""
    return output, torch.rand(x.shape[1], x.shape[0], x.shape[0])


def with_all_positions(x, output):
    """PLOT's: ``(positions, B, D)``, the pooled one first."""
    return torch.cat([output[None], torch.rand(x.shape[2] * x.shape[3], *output.shape)])


@pytest.fixture(scope="module")
def vit(small_clip):
    return load_clip(str(small_clip))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "clip.pt"
    torch.save(tiny.resnet_state(), path)
    return load_clip(str(path))


def talking_blocks(clip, more):
    fork = copy.deepcopy(clip)
    for tower in (fork.visual.transformer, fork.transformer):
        tower.resblocks = nn.Sequential(*[Talkative(block, more) for block in tower.resblocks])
    return PromptedCLIP(fork)


def talking_pool(clip, more):
    fork = copy.deepcopy(clip)
    fork.visual.attnpool = Talkative(fork.visual.attnpool, more)
    fork.visual.get_parameter = lambda name: clip.visual.get_parameter(name)
    return PromptedCLIP(fork)


@pytest.mark.parametrize("more", [with_attention, lambda x, y: [None, y], lambda x, y: (y, {"weights": x})])
def test_blocks_that_return_more(vit, more):
    fork, pixels = talking_blocks(vit, more), tiny_capt.images(3)
    ours, theirs = PromptedCLIP(vit).encode_image(pixels), fork.encode_image(pixels)
    assert torch.equal(ours.feature, theirs.feature)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(PromptedCLIP(vit).text_features(TEXTS), fork.text_features(TEXTS))


@pytest.mark.parametrize("num", [1, 2, 3, 5])
@pytest.mark.parametrize("turned", [False, True])
def test_a_pool_that_returns_every_position(resnet, num, turned):
    """Also where there are as many images as positions: this ResNet has two."""

    def more(x, output):
        every = with_all_positions(x, output)
        return every.transpose(0, 1) if turned else every

    if turned and num == 1:
        pytest.skip("(1, 2, D) is told apart")
    pixels = torch.randn(num, 3, tiny.SIDE, tiny.SIDE, generator=tiny_capt.generator(num))
    assert len(resnet.visual.attnpool.positional_embedding) == 2
    ours = PromptedCLIP(resnet).encode_image(pixels).feature
    torch.testing.assert_close(talking_pool(resnet, more).encode_image(pixels).feature, ours)


def test_a_pool_that_returns_a_map_besides(resnet):
    pixels = torch.randn(3, 3, tiny.SIDE, tiny.SIDE, generator=tiny_capt.generator())
    fork = talking_pool(resnet, lambda x, output: (output, x))
    assert torch.equal(fork.encode_image(pixels).feature, PromptedCLIP(resnet).encode_image(pixels).feature)


def test_what_is_not_certain_names_module_and_shapes(vit, resnet):
    fork = talking_blocks(vit, lambda x, y: (y, y + 1, x))  # LoCoOp's local CLIP gives x, q, k, v
    with pytest.raises(ValueError, match=r"block 0 of this fork.*\(17, 2, 128\), \(17, 2, 128\).*not certain"):
        fork.encode_image(tiny_capt.images(2))
    with pytest.raises(ValueError, match=r"block 0 .* returns NoneType for a sequence"):
        talking_blocks(vit, lambda x, y: None).text_features(TEXTS)
    pixels = torch.randn(3, 3, tiny.SIDE, tiny.SIDE, generator=tiny_capt.generator())
    with pytest.raises(ValueError, match=r"image tower .* returns \(3, 32\) for 3 images.*\(3, 64\) is not certain"):
        talking_pool(resnet, lambda x, y: y[:, :32]).encode_image(pixels)
    with pytest.raises(ValueError, match=r"returns \(7, 3, 64\) for 3 images"):
        talking_pool(resnet, lambda x, y: torch.rand(7, *y.shape)).encode_image(pixels)


def test_another_shape_is_no_sequence():
    x = torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match=r"block 3 .* returns \(4, 2, 9\) for a sequence \(4, 2, 8\)"):
        sequence_of(torch.zeros(4, 2, 9), x, "block 3")
    assert sequence_of(x + 1, x, "block 3").sum() == x.numel()
