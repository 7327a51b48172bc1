"""Prompts are encoded up to the longest end token; what stands behind it, which the causal tower cannot see, is not."""

import sys
from pathlib import Path

import pytest
import tiny
import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "capt"))

import tiny_capt  # noqa: E402

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip  # noqa: E402
from trainers.capt.bases.context import class_tokens, encode_texts_per_image, place_context  # noqa: E402
from trainers.capt.bases.learners import CoOp, ZeroshotCLIP  # noqa: E402
from trainers.capt.bases.prompted import CoCoOp, DeepPromptedCLIP, LearnedPrompts, meta_net  # noqa: E402

CONTEXT = 77
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def clip(clip_path):
    return PromptedCLIP(load_clip(str(clip_path)))


def _random(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=tiny_capt.generator(seed))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("depth", [0, 1])
def test_features_of_cut_prompts_are_those_of_whole_ones(clip, position, depth):
    context, deep = _random(4, 64), _random(depth, 4, 64, seed=1) if depth else None
    tokens = class_tokens(clip, tiny_capt.NEW_CLASSES, "X X X X", 4, position)
    parts = (context, tokens.prefix, tokens.suffix, tokens.order)
    cut, whole = place_context(*parts, tokens.length), place_context(*parts)
    assert (cut.shape[1], whole.shape[1]) == (int(tokens.eot.max()) + 1, CONTEXT)
    with torch.no_grad():
        features = [normalize(clip.encode_text(prompts, tokens.eot, deep), dim=-1) for prompts in (cut, whole)]
    torch.testing.assert_close(*features, **CLOSE)
    assert all(block.attn_mask.shape == (CONTEXT, CONTEXT) for block in clip.clip.transformer.resblocks)


def test_features_of_prompts_for_each_image_likewise(clip):
    tokens = class_tokens(clip, tiny_capt.CLASSES, "X X X X", 4)
    parts = (clip.encode_text, _random(3, 4, 64), tokens.prefix, tokens.suffix, tokens.eot)
    with torch.no_grad():
        cut, whole = encode_texts_per_image(*parts, length=tokens.length), encode_texts_per_image(*parts)
    torch.testing.assert_close(normalize(cut, dim=-1), normalize(whole, dim=-1), **CLOSE)


def test_masks_come_back_where_a_block_fails(clip, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(clip.clip.transformer.resblocks[1], "forward", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        clip.text_features(["a cup"])
    assert all(block.attn_mask.shape == (CONTEXT, CONTEXT) for block in clip.clip.transformer.resblocks)


def _lengths_seen(clip, monkeypatch):
    """Lengths of the sequences that the text tower's first block is given from now on."""
    seen, block = [], clip.transformer.resblocks[0]
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda x: seen.append(len(x)) or forward(x))
    return seen


@pytest.mark.parametrize("base", ["zeroshot", "coop", "deep", "cocoop"])
def test_no_base_learner_encodes_padding(clip, base, monkeypatch):
    context = _random(4, 64)
    models = {
        "zeroshot": lambda: ZeroshotCLIP(clip, "a photo of a {}."),
        "coop": lambda: CoOp(clip, context, "front"),
        "deep": lambda: DeepPromptedCLIP(clip, LearnedPrompts(context, _random(1, 4, 64))),
        "cocoop": lambda: CoCoOp(clip, context, meta_net(64, 64)),
    }
    seen = _lengths_seen(clip.clip, monkeypatch)
    models[base]().set_classes(tiny_capt.CLASSES)
    assert seen
    assert max(seen) <= 10


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp", "MaPLe", "IVLP", "PromptSRC"])
def test_no_trainer_encodes_padding_and_loss_and_gradients_stay(name, make_trainer, monkeypatch):
    trainer = make_trainer(name)
    if name == "PromptSRC":
        trainer.teacher_texts = trainer.encode_teacher_texts()
    images, label = (tiny.batch()[key] for key in ("img", "label"))
    learner = trainer.model.prompt_learner
    found = []
    for length in (learner.length, CONTEXT):
        learner.length = length
        seen = _lengths_seen(trainer.model.text_encoder, monkeypatch)
        trainer.model.zero_grad()
        loss = trainer.compute_loss(images, label)[0]
        loss.backward()
        assert set(seen) == {length}
        found.append([loss.detach(), *(p.grad.clone() for p in trainer.model.parameters() if p.grad is not None)])
    for cut, whole in zip(*found, strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)
