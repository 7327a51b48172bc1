"""What all prompts begin with is encoded once: same features, losses and gradients, and only where that is exact."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "capt"))

import tiny_capt  # noqa: E402

from trainers.capt.backbone import prompted_clip, shared_prefix  # noqa: E402
from trainers.capt.backbone.blocks import BlockPrompts  # noqa: E402
from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip  # noqa: E402
from trainers.capt.backbone.shared_prefix import pays  # noqa: E402
from trainers.capt.backbone.towers import BlockSizes, Transformer, causal_mask  # noqa: E402
from trainers.capt.bases.context import class_tokens, place_context, shared_length  # noqa: E402
from trainers.capt.bases.prompted import CoCoOp, meta_net  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "trainers"
CLASSES = tiny_capt.NEW_CLASSES
NUM_CONTEXT = 4


@pytest.fixture(scope="module")
def clip(clip_path):
    return PromptedCLIP(load_clip(str(clip_path)))


@pytest.fixture
def always(monkeypatch):
    """Sharing also where it saves next to nothing."""
    monkeypatch.setattr(prompted_clip, "pays", lambda num_saved, x: True)


@pytest.fixture
def runs(monkeypatch):
    """Shapes of what was computed once, of every run that shared."""
    seen = []
    own = shared_prefix.run_sharing

    def noted(transformer, shared, *others):
        seen.append(tuple(shared.shape[:2]))
        return own(transformer, shared, *others)

    monkeypatch.setattr(prompted_clip, "run_sharing", noted)
    return seen


def _random(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=tiny_capt.generator(seed))


def _tokens(clip, position="end", words="X X X X"):
    return class_tokens(clip, CLASSES, words, NUM_CONTEXT, position)


@pytest.mark.parametrize(
    ("position", "words", "per_class", "expected"),
    [
        ("end", "X X X X", False, 5),  # start, four of the context
        ("end", "X X X X of a", False, 7),  # and two words behind it
        ("middle", "X X X X", False, 3),  # start, two of the context; then the name
        ("front", "X X X X", False, 1),
        ("end", "X X X X", True, 1),
        ("middle", "X X X X", True, 1),
    ],
)
def test_what_prompts_have_in_common(clip, position, words, per_class, expected):
    assert shared_length(_tokens(clip, position, words), NUM_CONTEXT, per_class) == expected


def test_the_read_token_is_never_among_the_shared_ones(clip):
    same = class_tokens(clip, ["cup", "cup"], "X X X X", NUM_CONTEXT)
    assert shared_length(same, NUM_CONTEXT) == int(same.eot.min())
    assert shared_length(class_tokens(clip, ["cup"], "X X X X", NUM_CONTEXT), NUM_CONTEXT) == 0


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_features_and_gradients_are_those_of_whole_prompts(clip, always, runs, position, depth):
    context, deep = _random(NUM_CONTEXT, 64), _random(2, NUM_CONTEXT, 64, seed=1)[:depth]
    tokens = _tokens(clip, position)
    shared = shared_length(tokens, NUM_CONTEXT)
    found = []
    for p in (0, shared):
        leaves = [context.clone().requires_grad_(), deep.clone().requires_grad_()]
        prompts = place_context(leaves[0], tokens.prefix, tokens.suffix, tokens.order, tokens.length)
        features = clip.encode_text(prompts, tokens.eot, leaves[1] if depth else None, shared=p)
        (features * _random(*features.shape, seed=2)).sum().backward()
        found.append([features, leaves[0].grad, *([leaves[1].grad] if depth else [])])
    is_inside = position == "end" or not depth  # prompts that replace tokens of single texts keep them whole
    assert runs == ([(1, shared)] if is_inside else [])
    for whole, once in zip(*found, strict=True):
        torch.testing.assert_close(once, whole, rtol=0, atol=1e-5 * max(1.0, float(whole.detach().abs().max())))


def test_groups_share_within_themselves(clip, always, runs):
    tokens, contexts = _tokens(clip), _random(3, NUM_CONTEXT, 64)
    base = CoCoOp(clip, contexts[0], meta_net(64, 64))
    base.set_classes(CLASSES)
    z = tiny_capt.unit(3, 64)
    together = base.text_features_for(z)
    assert runs[-1] == (3, 5)
    alone = torch.stack([base.text_features_for(row)[0] for row in z.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    learned = contexts[0] + base.meta_net(z).unsqueeze(1)
    for context, own in zip(learned, together, strict=True):
        prompts = place_context(context, tokens.prefix, tokens.suffix, length=tokens.length)
        whole = nn.functional.normalize(clip.encode_text(prompts, tokens.eot), dim=-1)
        torch.testing.assert_close(own, whole, rtol=0, atol=1e-6)


SHARING = [case for case, (name, _) in tiny.CASES.items() if name not in ("VPT", "PromptKD")]


@pytest.mark.parametrize("case", SHARING)
def test_trainers_make_the_originals_steps(case, make_trainer, always, runs):
    """Against numbers of the original repositories, as in test_golden.py, where the classes are too few to share."""
    trainer = make_trainer(*tiny.CASES[case])
    found = tiny.record_steps(trainer, trainer.model)
    assert runs
    with np.load(GOLDEN / f"{case}.npz") as stored:
        for key in sorted(set(found) - {"prompts", "images"}):
            np.testing.assert_allclose(found[key], stored[key], rtol=1e-5, atol=1e-5, err_msg=key)


def test_few_texts_are_encoded_whole(clip, runs):
    tokens = class_tokens(clip, CLASSES[:3], "X X X X", NUM_CONTEXT)
    prompts = place_context(_random(NUM_CONTEXT, 64), tokens.prefix, tokens.suffix, length=tokens.length)
    clip.encode_text(prompts, tokens.eot, shared=5)
    assert runs == []
    clip.encode_text(prompts.repeat(7, 1, 1), tokens.eot.repeat(7), shared=5)
    assert runs == [(1, 5)]


class OtherBlock(nn.Module):
    """A fork's: the same parts, put together in another way."""

    def __init__(self, block):
        super().__init__()
        self.attn, self.ln_1, self.ln_2, self.mlp, self.attn_mask = (
            getattr(block, name) for name in ("attn", "ln_1", "ln_2", "mlp", "attn_mask")
        )

    def forward(self, x):
        h = self.ln_1(x)
        x = x + 0.5 * self.attn(h, h, h, need_weights=False, attn_mask=self.attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


def _tower(mask=True):
    torch.manual_seed(0)
    return Transformer(BlockSizes(16, 2, 2, 32, "quick_gelu"), causal_mask(12) if mask else None)


def _can(tower, prompts=None, shared=3):
    return shared_prefix.can_share(tower, prompts or BlockPrompts({}), shared, 1)


def test_only_blocks_that_compute_the_same_share():
    assert _can(_tower())
    assert not _can(_tower(mask=False)), "a SigLIP's text tower sees what stands behind"
    forked = _tower()
    forked.resblocks[1] = OtherBlock(forked.resblocks[1])
    assert not _can(forked)
    listed = _tower()
    listed.resblocks[0].forward = lambda inputs: inputs[0]
    assert not _can(listed), "somebody put another forward there"


def test_who_watches_a_block_is_called():
    tower = _tower()
    assert _can(tower)
    handle = tower.resblocks[1].mlp.register_forward_hook(lambda *_: None)
    assert not _can(tower)
    handle.remove()
    assert _can(tower)


def test_prompts_must_lie_in_the_shared_part():
    tower, prompt = _tower(), _random(2, 16)
    assert _can(tower, BlockPrompts({1: prompt}))
    assert not _can(tower, BlockPrompts({1: prompt}), shared=2)
    assert not _can(tower, BlockPrompts({1: prompt}, behind=2))
    assert not _can(tower, BlockPrompts({1: prompt}, inserted=True))
    assert not _can(tower, BlockPrompts({1: prompt.expand(5, -1, -1)})), "one a text"
    assert not _can(tower, shared=0)


def test_a_tower_is_tried_once_and_draws_no_random_number(monkeypatch):
    tower, tried = _tower(), []
    own = shared_prefix._is_plain_block
    monkeypatch.setattr(shared_prefix, "_is_plain_block", lambda block: tried.append(block) or own(block))
    before = torch.get_rng_state()
    assert _can(tower)
    assert _can(tower)
    assert _can(copy.deepcopy(tower))
    assert len(tried) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_branch_keeps_texts_whole(clip, always, runs):
    tokens = _tokens(clip)
    prompts = place_context(_random(NUM_CONTEXT, 64), tokens.prefix, tokens.suffix, length=tokens.length)
    clip.encode_text(prompts, tokens.eot, branch=lambda *_: None, shared=5)
    deep = replace(BlockPrompts.of(_random(1, NUM_CONTEXT, 64)), behind=3)
    clip.encode_text(prompts, tokens.eot, deep, shared=5)
    assert runs == []


@pytest.mark.parametrize(
    ("device", "dtype", "least"),
    [
        ("cpu", torch.float32, 40),
        ("cpu", torch.bfloat16, 40),
        ("meta", torch.float32, 4_000),
        ("meta", torch.float16, 20_000),
    ],
)
def test_when_it_pays(device, dtype, least):
    """A GPU, for which the meta device stands, is told of twice as many products, which few tokens are not worth."""
    x = torch.empty(1, dtype=dtype, device=device)
    assert pays(least, x)
    assert not pays(least - 1, x)
