"""What the prompt learners promise besides their numbers: precision, sizes, depths, backbones, what is trained."""

import pytest
import tiny
import torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY

import trainers

LEARNERS = ["CoOp", "CoCoOp", "MaPLe", "IVLP", "VPT", "PromptSRC"]
VISUAL = ["MaPLe", "IVLP", "VPT", "PromptSRC"]


def _logits(trainer):
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(tiny.batch()["img"])


def _step(trainer):
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
    trainer.set_model_mode("train")
    return trainer.forward_backward(tiny.batch())


def test_every_trainer_is_registered():
    names = ["ZeroshotCLIP", "ZeroshotCLIP2", *LEARNERS]
    assert set(names) <= set(TRAINER_REGISTRY.registered_names())


def test_nodes_have_the_familys_defaults():
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    words = {"CTX_INIT": "a photo of a", "PREC": "fp16"}
    both = {"PROMPT_DEPTH_VISION": 9, "PROMPT_DEPTH_TEXT": 9}
    expected = {
        "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"},
        "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
        "MAPLE": {"N_CTX": 2, "PROMPT_DEPTH": 9} | words,
        "IVLP": {"N_CTX_VISION": 2, "N_CTX_TEXT": 2} | both | words,
        "VPT": {"N_CTX_VISION": 2, "PROMPT_DEPTH_VISION": 1} | words,
        "PROMPTSRC": {"N_CTX_VISION": 4, "N_CTX_TEXT": 4, "TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10}
        | {"GPA_MEAN": 15, "GPA_STD": 1}
        | both
        | words,
    }
    assert {name: dict(cfg.TRAINER[name]) for name in expected} == expected
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "all"


# ------------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("name", LEARNERS)
def test_unknown_precision_is_refused(name, make_trainer):
    with pytest.raises(ValueError, match=f"TRAINER.{name.upper()}.PREC must be one of .*, got 'half'"):
        make_trainer(name, precision="half")


def test_unknown_position_is_refused(make_trainer):
    with pytest.raises(ValueError, match="CLASS_TOKEN_POSITION must be one of end, middle, front, got 'back'"):
        make_trainer("CoOp", {"CLASS_TOKEN_POSITION": "back"})


@pytest.mark.parametrize("name", ["ZeroshotCLIP", "CoOp", "MaPLe"])
def test_input_size_of_another_clip_is_refused(name, make_trainer):
    with pytest.raises(ValueError, match=r'INPUT.SIZE must be \(32, 32\).*add INPUT.SIZE "\(32, 32\)"'):
        make_trainer(name, options=["INPUT.SIZE", (224, 224)])


@pytest.mark.parametrize("name", ["MaPLe", "IVLP", "PromptSRC"])
def test_the_default_depth_is_cut_to_a_small_clip(name, make_trainer, capsys):
    trainer = make_trainer(name)
    assert " 9 is cut to 3, the number of blocks of this CLIP" in capsys.readouterr().out
    deep = [key for key in tiny.trained(trainer.model) if "VPT_shallow" in key or "compound_prompts_text" in key]
    assert len(deep) == (2 if name == "MaPLe" else 4)


@pytest.mark.parametrize(
    ("name", "key", "depth", "least"),
    [
        ("MaPLe", "PROMPT_DEPTH", 4, 1),
        ("MaPLe", "PROMPT_DEPTH", 0, 1),
        ("IVLP", "PROMPT_DEPTH_TEXT", 0, 1),
        ("IVLP", "PROMPT_DEPTH_VISION", 12, 0),
        ("VPT", "PROMPT_DEPTH_VISION", 0, 1),
        ("PromptSRC", "PROMPT_DEPTH_TEXT", 4, 1),
    ],
)
def test_impossible_depths_are_refused(name, key, depth, least, make_trainer):
    message = rf"TRAINER.{name.upper()}.{key} must be in \[{least}, 3\] for this CLIP, got {depth}"
    with pytest.raises(ValueError, match=message):
        make_trainer(name, {key: depth})


def test_a_context_longer_than_its_words_is_refused(make_trainer):
    with pytest.raises(ValueError, match='CTX_INIT "a photo" has 2 tokens, fewer than N_CTX 4'):
        make_trainer("MaPLe", {"CTX_INIT": "a photo", "N_CTX": 4})


def test_a_context_without_room_for_a_name_is_refused(make_trainer):
    with pytest.raises(ValueError, match="N_CTX must be at most 73"):
        make_trainer("CoOp", {"N_CTX": 74})


# --------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["fp16", "amp"])
@pytest.mark.parametrize("name", LEARNERS)
def test_half_precision_on_the_cpu_is_fp32_and_says_so(name, precision, make_trainer, capsys):
    trainer = make_trainer(name, precision=precision)
    out = capsys.readouterr().out
    assert out.count(f"PREC {precision} needs a GPU; running in fp32 on the CPU") == 1
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.scaler is None


@pytest.mark.parametrize("name", LEARNERS)
def test_bf16_keeps_prompts_in_fp32_and_comes_close(name, make_trainer):
    exact, rough = make_trainer(name), make_trainer(name, precision="bf16")
    tiny.set_prompts(exact.model)
    tiny.set_prompts(rough.model)
    assert {p.dtype for p in tiny.trained(rough.model).values()} == {torch.float32}
    assert rough.model.image_encoder.conv1.weight.dtype == torch.bfloat16
    logits = _logits(rough)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, _logits(exact), rtol=0, atol=0.25)
    assert abs(float(_step(rough)["loss"]) - float(_step(exact)["loss"])) < 0.1


# --------------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("name", LEARNERS)
def test_a_step_moves_the_prompts_and_nothing_else(name, make_trainer):
    trainer = make_trainer(name)
    tiny.set_prompts(trainer.model)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    _step(trainer)
    trained = tiny.trained(trainer.model)
    moved = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(trained)
    assert all("prompt_learner" in key or "VPT" in key for key in trained)
    assert not any("ZS_image_encoder" in key for key in trained)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_same_seed_gives_the_same_start(name, make_trainer):
    starts = []
    for _ in range(2):
        torch.manual_seed(3)
        starts.append(tiny.checksum(tiny.trained(make_trainer(name).model)))
    assert starts[0] == starts[1]


def test_frozen_tower_of_promptsrc_takes_no_memory(make_trainer):
    model = make_trainer("PromptSRC").model
    frozen = dict(model.prompt_learner.ZS_image_encoder.named_parameters())
    prompted = dict(model.image_encoder.named_parameters())
    assert all(value is prompted[key] for key, value in frozen.items())
    assert not any("VPT" in key for key in frozen)


# --------------------------------------------------------------------------------------------------------- backbones


@pytest.fixture(scope="module")
def resnet_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "clip.pt"
    torch.save(tiny.resnet_state(), path)
    return path


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp"])
def test_a_resnet_can_be_prompted_by_text(name, make_trainer, resnet_path):
    trainer = make_trainer(name, clip_path=resnet_path)
    statistics = trainer.model.image_encoder.bn1.running_mean.clone()
    assert _step(trainer)["loss"].isfinite()
    assert torch.equal(trainer.model.image_encoder.bn1.running_mean, statistics)
    assert _logits(trainer).shape == (5, 4)


@pytest.mark.parametrize("name", VISUAL)
def test_a_resnet_cannot_be_prompted_by_tokens(name, make_trainer, resnet_path):
    with pytest.raises(ValueError, match=f"{name} needs a ViT backbone; set MODEL.BACKBONE.NAME"):
        make_trainer(name, clip_path=resnet_path)


# --------------------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize("name", ["CoOp", "MaPLe", "IVLP", "PromptSRC"])
def test_texts_are_encoded_once_a_test_and_never_stale(name, make_trainer, monkeypatch):
    trainer = make_trainer(name)
    tiny.set_prompts(trainer.model)
    calls = []
    encode = trainer.model.encode_texts
    monkeypatch.setattr(trainer.model, "encode_texts", lambda: calls.append(1) or encode())
    images = tiny.batch()["img"]
    trainer.set_model_mode("eval")
    first = trainer.model_inference(images)
    trainer.model_inference(images)
    assert len(calls) == 1
    _step(trainer)
    changed = trainer.model_inference(images)
    with torch.no_grad():
        torch.testing.assert_close(changed, trainer.model(images), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first, changed)


@pytest.mark.parametrize("name", ["CoOp", "IVLP", "VPT"])
def test_prompts_that_change_nothing_give_zero_shot_clip(name, make_trainer):
    """Shallow prompts that start from "a photo of a", and visual prompts of length 0, are CLIP itself."""
    keys = {
        "CoOp": {"CTX_INIT": "a photo of a"},
        "IVLP": {"N_CTX_TEXT": 4, "PROMPT_DEPTH_TEXT": 1, "PROMPT_DEPTH_VISION": 0},
        "VPT": {"N_CTX_VISION": 0},
    }[name]
    expected = _logits(make_trainer("ZeroshotCLIP"))
    torch.testing.assert_close(_logits(make_trainer(name, keys)), expected, rtol=1e-5, atol=1e-5)


def test_class_order_does_not_matter(make_trainer):
    order = [2, 0, 3, 1]
    straight = make_trainer("MaPLe")
    shuffled = make_trainer("MaPLe", class_names=[tiny.CLASS_NAMES[i] for i in order])
    for trainer in (straight, shuffled):
        tiny.set_prompts(trainer.model)
    torch.testing.assert_close(_logits(straight)[:, order], _logits(shuffled), rtol=1e-5, atol=1e-5)
