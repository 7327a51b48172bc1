"""Every trainer's answers from cut texts are those of the uncut tower, to 1e-6 of a cosine in fp32."""

import sys
from pathlib import Path

import pytest
import tiny
import torch
from dassl.engine import TRAINER_REGISTRY

sys.path.insert(0, str(Path(__file__).parents[1] / "capt"))

import tiny_capt  # noqa: E402
from uncut import CONTEXT, uncut, watch  # noqa: E402

OTHERS = ["ZeroshotCLIP", "ZeroshotCLIP2", "LinearProbe", "CLIPAdapter", "TipAdapter", "TipAdapterF"]
CASES = {
    **tiny.CASES,
    "CoOp_middle": ("CoOp", {"N_CTX": 4, "CLASS_TOKEN_POSITION": "middle"}),
    "CoOp_csc": ("CoOp", {"N_CTX": 4, "CSC": True}),
    **{name: (name, {}) for name in OTHERS},
}
CLASSES = [*tiny_capt.NEW_CLASSES, *tiny_capt.CLASSES]  # enough for sharing what they begin with


def answers(make_trainer, case):
    """Cosines of images and texts ``(B, C)``, and frozen texts where a trainer has them; of the same prompts always."""
    trainer = make_trainer(*CASES[case], class_names=CLASSES)
    if case not in OTHERS:
        tiny.set_prompts(trainer.model)
    images = tiny.batch()["img"]
    with torch.no_grad():
        if not hasattr(trainer, "start_from"):
            trainer.set_model_mode("eval")
            clip = getattr(trainer, "clip", None)
            scale = trainer.model.logit_scale if clip is None else clip.clip.logit_scale
            found = [trainer.model_inference(images).float() / scale.exp()]
        else:  # an adapter is made of these, and of image features
            found = [torch.nn.functional.normalize(trainer.adapter.text_features, dim=-1)]
        if case == "PromptSRC":
            found.append(trainer.encode_teacher_texts())
    return found


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_uncut_tower(case, make_trainer, monkeypatch):
    seen = watch(monkeypatch)
    cut = answers(make_trainer, case)
    assert seen
    assert max(seen) < 25
    seen.clear()
    uncut(monkeypatch)
    whole = answers(make_trainer, case)
    assert set(seen) == {CONTEXT}
    for mine, theirs in zip(cut, whole, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_every_trainer_is_covered(make_trainer):
    make_trainer("CoOp")  # registers all of them
    trainers = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    own = {name for name, trainer in trainers.items() if trainer.__module__.startswith("trainers.")}
    assert {name for name, _ in CASES.values()} | {"CAPT"} == own  # CAPT reads the texts of its base: test_uncut_bases
