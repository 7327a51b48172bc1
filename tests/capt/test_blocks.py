"""Prompts at any block, inserted tokens and branches: PromptedCLIP against blocks that are walked by hand."""

import pytest
import tiny_capt
import torch

from trainers.capt.backbone.blocks import BlockPrompts, masks_for
from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip

TEXTS = ["a photo of a cup.", "otter", "a painting of two red foxes at sea"]
TEXT_WIDTH, VISUAL_WIDTH = 64, 128


@pytest.fixture(scope="module")
def clip(small_clip):
    return PromptedCLIP(load_clip(str(small_clip)))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=tiny_capt.generator(seed))


def patches(clip, pixels):
    """What enters the image tower's first block, ``(length, batch, width)``."""
    v = clip.vit
    x = v.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    return v.ln_pre(x).transpose(0, 1)


def block_by_hand(block, x, causal):
    """One residual block with a mask of its own making."""
    mask = torch.full((len(x), len(x)), float("-inf")).triu(1) if causal else None
    y = block.ln_1(x)
    x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
    return x + block.mlp(block.ln_2(x))


def texts_by_hand(clip, ids, enter, shift=0):
    """Features ``(C, D)``; ``enter(number, x)`` changes a block's input."""
    model = clip.clip
    x = (clip.embed(ids) + model.positional_embedding).transpose(0, 1)
    for number, block in enumerate(model.transformer.resblocks):
        x = block_by_hand(block, enter(number, x), causal=True)
    x = model.ln_final(x.transpose(0, 1))
    return x[torch.arange(len(ids)), ids.argmax(-1) + shift] @ model.text_projection


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 1])
def test_prompts_of_each_text_at_one_block(clip, number):
    ids, prompts = clip.tokenize(TEXTS), random(len(TEXTS), 2, TEXT_WIDTH)

    def enter(at, x):
        x = x.clone()
        for text in range(len(TEXTS)):
            if at == number:
                x[1:3, text] = prompts[text]
        return x

    expected = texts_by_hand(clip, ids, enter)
    actual = clip.encode_text(clip.embed(ids), ids.argmax(-1), BlockPrompts({number: prompts}))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompts_behind_other_tokens(clip):
    ids, prompts = clip.tokenize(TEXTS[2:]), random(2, TEXT_WIDTH)

    def enter(at, x):
        return torch.cat([x[:4], prompts.unsqueeze(1), x[6:]]) if at == 1 else x

    expected = texts_by_hand(clip, ids, enter)
    actual = clip.encode_text(clip.embed(ids), ids.argmax(-1), BlockPrompts({1: prompts}, behind=4))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 1)])
def test_inserted_text_tokens_widen_the_mask(clip, numbers):
    """At full context the mask must grow beyond CLIP's own."""
    ids = clip.tokenize(TEXTS)
    prompts = {number: random(3, TEXT_WIDTH, seed=number) for number in numbers}

    def enter(at, x):
        if at not in prompts:
            return x
        rest = x[1:] if at == numbers[0] else x[4:]
        return torch.cat([x[:1], prompts[at].unsqueeze(1).expand(-1, len(TEXTS), -1), rest])

    expected = texts_by_hand(clip, ids, enter, shift=3)
    inserted = BlockPrompts(prompts, inserted=True)
    torch.testing.assert_close(clip.encode_text(clip.embed(ids), ids.argmax(-1), inserted), expected)
    assert not torch.allclose(expected, clip.encode_text(clip.embed(ids), ids.argmax(-1)), atol=1e-3)
    short = ids[:, : int(ids.argmax(-1).max()) + 1]
    actual = clip.encode_text(clip.embed(short), ids.argmax(-1), inserted)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_inserted_visual_tokens(clip):
    pixels, prompts = tiny_capt.images(2), {0: random(3, VISUAL_WIDTH), 1: random(3, VISUAL_WIDTH, seed=1)}
    blocks = clip.vit.transformer.resblocks
    x = patches(clip, pixels)
    x = torch.cat([x[:1], prompts[0].unsqueeze(1).expand(-1, 2, -1), x[1:]])
    x = block_by_hand(blocks[0], x, causal=False)
    x[1:4] = prompts[1].unsqueeze(1)
    x = block_by_hand(blocks[1], x, causal=False).transpose(0, 1)
    features = clip.encode_image(pixels, deep_prompts=BlockPrompts(prompts, inserted=True))
    torch.testing.assert_close(features.cls, x[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.inserted, x[:, 1:4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.tokens, x[:, 4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.feature, clip.vit.ln_post(x[:, 0]) @ clip.vit.proj, rtol=1e-5, atol=1e-5)
    assert clip.encode_image(pixels).inserted is None


@torch.no_grad()
def test_a_stack_of_prompts_is_that_of_blocks_one_and_on(clip):
    ids, deep = clip.tokenize(TEXTS), random(1, 2, TEXT_WIDTH)
    stacked = clip.encode_text(clip.embed(ids), ids.argmax(-1), deep)
    assert torch.equal(stacked, clip.encode_text(clip.embed(ids), ids.argmax(-1), BlockPrompts({1: deep[0]})))


@torch.no_grad()
def test_a_branch_adds_to_the_output_of_its_block(clip):
    pixels, weight = tiny_capt.images(2), random(VISUAL_WIDTH, VISUAL_WIDTH) / 20
    first, second = clip.vit.transformer.resblocks
    x = patches(clip, pixels)
    x = block_by_hand(first, x, causal=False)
    x = block_by_hand(second, x, causal=False) + second.ln_1(x) @ weight
    seen = []

    def branch(number, block, x):
        seen.append(number)
        return block.ln_1(x) @ weight if number == 1 else None

    features = clip.encode_image(pixels, branch=branch)
    torch.testing.assert_close(features.cls, x[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.tokens, x[1:].transpose(0, 1), rtol=1e-5, atol=1e-5)
    assert seen == [0, 1]


def test_blocks_that_are_not_there_are_named(clip):
    ids = clip.tokenize(TEXTS)
    with pytest.raises(ValueError, match=r"prompts for the blocks \[8\] of a tower that has the blocks 0 to 1"):
        clip.encode_text(clip.embed(ids), ids.argmax(-1), BlockPrompts({1: random(2, 64), 8: random(2, 64)}))
    with pytest.raises(ValueError, match=r"prompts for the blocks \[-1\]"):
        clip.encode_image(tiny_capt.images(1), deep_prompts=BlockPrompts({-1: random(2, 128)}))


def test_masks_are_put_back(clip):
    blocks = list(clip.clip.transformer.resblocks)
    before = [block.attn_mask for block in blocks]
    with masks_for(blocks, [3, 80]):
        assert [tuple(block.attn_mask.shape) for block in blocks] == [(3, 3), (80, 80)]
        assert (blocks[1].attn_mask == torch.full((80, 80), float("-inf")).triu(1)).all()
    assert all(block.attn_mask is mask for block, mask in zip(blocks, before, strict=True))
