"""Every base learner's texts, cut behind the longest end token, are those of the uncut tower."""

import other_methods
import pytest
import test_base_models_more as more
import test_other_methods as others
import tiny_capt
import torch
from test_base_models_more import clip_path, run  # noqa: F401 - fixtures
from uncut import CONTEXT, uncut, watch

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip
from trainers.capt.bases.learners import BASE_LEARNERS

CASES = {**more.CASES, "CoOp_front": ("CoOp", {"N_CTX": 4, "CLASS_TOKEN_POSITION": "front"})}
CLASSES = tiny_capt.NEW_CLASSES
SENTENCES = ["a cup has a handle.", "both are found in kitchens and on tables."]


@pytest.fixture(scope="module")
def deep_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("deep") / "clip.pt"
    torch.save(other_methods.deep_clip_state(), path)
    return path


@pytest.fixture
def made(run, clip_path, deep_clip, small_clip, tmp_path, monkeypatch):  # noqa: F811
    """``made(case)`` is the base model of a case."""
    monkeypatch.setattr(more, "CASES", CASES)

    def make(case):
        if case == "ZeroshotCLIP":
            return tiny_capt.make_base(small_clip)
        if case in other_methods.METHODS:
            return others.base_of(case, PromptedCLIP(load_clip(str(deep_clip))), tmp_path)[0]
        return more._base(case, run(case), clip_path)

    return make


def texts_of(base):
    """T of some classes, of an image where texts follow it, and features of sentences."""
    base.set_classes(CLASSES)
    z = tiny_capt.unit(3, base.embed_dim)
    return base.text_features, base.text_features_for(z), base.encode_sentences(SENTENCES)


@pytest.mark.parametrize("case", ["ZeroshotCLIP", *CASES, *other_methods.METHODS])
@torch.no_grad()
def test_texts_are_those_of_the_uncut_tower(case, made, monkeypatch):
    made(case)  # a trainer that writes the checkpoint encodes texts as well
    seen = watch(monkeypatch)
    cut = texts_of(made(case))
    assert seen
    assert max(seen) < 25
    seen.clear()
    uncut(monkeypatch)
    whole = texts_of(made(case))
    assert set(seen) == {CONTEXT}
    for mine, theirs in zip(cut, whole, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_every_learner_is_covered():
    assert {name for name, _ in CASES.values()} | {"ZeroshotCLIP"} | set(other_methods.METHODS) == set(BASE_LEARNERS)


@pytest.mark.parametrize("classnames", [CLASSES, CLASSES[:1]])
@torch.no_grad()
def test_cocoops_texts_of_a_batch_take_one_run_of_the_tower(made, classnames, monkeypatch):
    """Each image's are its own: as one by one, and not those of another image."""
    base = made("CoCoOp")
    base.set_classes(classnames)
    z = tiny_capt.unit(8, base.embed_dim)
    seen = watch(monkeypatch)
    together = base.text_features_for(z)
    assert len(seen) == 1
    alone = torch.cat([base.text_features_for(row) for row in z.split(1)])
    assert len(seen) == 1 + 8
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-4)
