"""Every base learner gives the logits of its own trainer, on classes that it was not trained on."""

import sys
from pathlib import Path

import other_methods
import pytest
import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip  # noqa: E402
from trainers.capt.bases.learners import BASE_LEARNERS, BaseSpec, build_base  # noqa: E402

NEW_CLASSES = ["red_fox", "otter", "accordion"]
CASES = {
    "CoOp": ("CoOp", {"N_CTX": 4}),
    "CoOp_middle": ("CoOp", {"N_CTX": 4, "CLASS_TOKEN_POSITION": "middle"}),
    "CoCoOp": ("CoCoOp", {"CTX_INIT": "a photo of a"}),
    "MaPLe": ("MaPLe", {"PROMPT_DEPTH": 3}),
    "MaPLe_5_tokens": ("MaPLe", {"PROMPT_DEPTH": 2, "N_CTX": 5}),
    "MaPLe_shallow": ("MaPLe", {"PROMPT_DEPTH": 1}),
    "IVLP": ("IVLP", {"PROMPT_DEPTH_VISION": 3, "PROMPT_DEPTH_TEXT": 2}),
    "IVLP_language_only": ("IVLP", {"N_CTX_TEXT": 4, "PROMPT_DEPTH_VISION": 0, "PROMPT_DEPTH_TEXT": 3}),
    "VPT": ("VPT", {"N_CTX_VISION": 4, "PROMPT_DEPTH_VISION": 2}),
    "PromptSRC": ("PromptSRC", {}),
    "PromptKD": ("PromptKD", {"PROMPT_DEPTH_VISION": 3}),
}


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(tiny.clip_state(), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, clip_path):
    """``run(case)`` gives the folder of a run that was trained on the classes of ``tiny``."""
    folder = tmp_path_factory.mktemp("runs")

    def save(case):
        if not (folder / case).is_dir():
            trainer = tiny.make_trainer(*_args(case, clip_path))
            tiny.set_prompts(trainer.model)
            trainer.save_model(4, str(folder / case))
        return folder / case

    return save


def _args(case, clip_path):
    name, keys = CASES[case]
    return name, clip_path, keys


def _spec(case, folder, **more):
    name, keys = CASES[case]
    return BaseSpec(name, str(folder), class_token_position=keys.get("CLASS_TOKEN_POSITION", "end"), **more)


def _base(case, folder, clip_path, **more):
    if case == "PromptKD":
        teacher = tiny.save_teacher(Path(clip_path).parent)
        teacher = {"teacher_directory": teacher["TEACHER_DIR"], "teacher_backbone": teacher["TEACHER_NAME"]}
        more = teacher | more
    return build_base(PromptedCLIP(load_clip(str(clip_path))), _spec(case, folder, **more))


def _base_logits(base, class_names=NEW_CLASSES):
    base.set_classes(class_names)
    return base.logits(normalize(base.encode_image(tiny.batch()["img"]).feature.float(), dim=-1))


def _trainer_logits(case, clip_path, folder):
    trainer = tiny.make_trainer(*_args(case, clip_path), class_names=NEW_CLASSES)
    trainer.load_model(str(folder), epoch=5)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        return trainer.model_inference(tiny.batch()["img"])


def _rewrite(source, target, change):
    """A copy of a run folder with its weights changed."""
    for path in source.rglob("model.pth.tar-*"):
        checkpoint = torch.load(path, weights_only=False)
        changed = {key: change(key, value) for key, value in checkpoint["state_dict"].items()}
        kept = {key: value for key, value in changed.items() if value is not None}
        goal = target / path.relative_to(source)
        goal.parent.mkdir(parents=True)
        torch.save({"state_dict": kept, "epoch": 5}, goal)
        (goal.parent / "checkpoint").write_text(goal.name + "\n")
    return target


def test_every_learner_is_covered():
    own = {name for name, _ in CASES.values()} | {"ZeroshotCLIP"}
    assert own | set(other_methods.METHODS) == set(BASE_LEARNERS)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_trainers(case, run, clip_path):
    expected = _trainer_logits(case, clip_path, run(case))
    actual = _base_logits(_base(case, run(case), clip_path))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_half_precision_without_class_tokens(case, run, clip_path, tmp_path):
    folder = _rewrite(run(case), tmp_path, lambda k, v: None if "token_" in k else v.half())
    actual = _base_logits(_base(case, folder, clip_path))
    torch.testing.assert_close(actual, _trainer_logits(case, clip_path, run(case)), rtol=0, atol=0.05)


@pytest.mark.parametrize("case", ["CoOp", "CoCoOp", "MaPLe", "IVLP", "VPT", "PromptKD"])
def test_tokens_project_to_the_feature(case, run, clip_path):
    base = _base(case, run(case), clip_path)
    features = base.encode_image(tiny.batch()["img"])
    assert features.tokens.shape == (5, 4, tiny.VISUAL_WIDTH)
    torch.testing.assert_close(base.project(features.cls), features.feature, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["CoCoOp", "MaPLe", "IVLP", "VPT", "PromptKD"])
def test_digest_follows_the_prompts(case, run, clip_path, tmp_path):
    folder = _rewrite(run(case), tmp_path, lambda k, v: v + 0.5 if k.endswith(("ctx", "VPT")) else v)
    same, other = _base(case, run(case), clip_path), _base(case, folder, clip_path)
    assert same.digest() == _base(case, run(case), clip_path).digest()
    assert same.digest() != other.digest()


def test_texts_of_cocoop_follow_the_image(run, clip_path):
    base = _base("CoCoOp", run("CoCoOp"), clip_path)
    base.set_classes(NEW_CLASSES)
    z = normalize(torch.randn(2, tiny.EMBED_DIM, generator=torch.Generator().manual_seed(0)), dim=-1)
    texts = base.text_features_for(z)
    assert texts.shape == (2, 3, tiny.EMBED_DIM)
    assert not torch.allclose(texts[0], texts[1])
    torch.testing.assert_close(base.text_features_for(torch.zeros(1, tiny.EMBED_DIM))[0], base.text_features)


def test_words_that_were_not_learned_stay(run, clip_path, tmp_path):
    keys = {"PROMPT_DEPTH": 2, "CTX_INIT": "one tiny picture of"}
    trainer = tiny.make_trainer("MaPLe", clip_path, keys)
    tiny.set_prompts(trainer.model)
    trainer.save_model(4, str(tmp_path))
    with pytest.raises(ValueError, match='another CTX_INIT than "a photo of a"'):
        _base("MaPLe", tmp_path, clip_path)
    new = tiny.make_trainer(
        "MaPLe", clip_path, {"PROMPT_DEPTH": 2, "CTX_INIT": "one tiny picture of"}, class_names=NEW_CLASSES
    )
    new.load_model(str(tmp_path), epoch=5)
    new.set_model_mode("eval")
    with torch.no_grad():
        expected = new.model_inference(tiny.batch()["img"])
    actual = _base_logits(_base("MaPLe", tmp_path, clip_path, context_words="one tiny picture of"))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["MaPLe", "IVLP", "VPT", "PromptKD"])
def test_another_clip_is_refused(case, run, tmp_path):
    torch.save(tiny.clip_state(seed=1), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="was trained on another CLIP"):
        _base(case, run(case), tmp_path / "other.pt")


TUNED = "image_encoder.transformer.resblocks.0.ln_1.weight"  # as methods that tune CLIP's norms have it


@pytest.mark.parametrize("case", ["MaPLe", "IVLP", "VPT", "PromptKD"])
def test_a_clip_that_was_tuned_is_refused(case, run, clip_path, tmp_path):
    folder = _rewrite(run(case), tmp_path, lambda key, value: value * 1.02 if key == TUNED else value)
    with pytest.raises(ValueError, match=rf"own weights were tuned \({TUNED} differs\)"):
        _base(case, folder, clip_path)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_tuning(precision, run, clip_path, tmp_path):
    def rounded(key, value):
        return value.to(precision) if value.is_floating_point() and key.startswith(("image_", "text_")) else value

    _base("MaPLe", _rewrite(run("MaPLe"), tmp_path, rounded), clip_path)


@pytest.mark.parametrize("case", ["MaPLe", "IVLP", "VPT", "PromptKD"])
def test_a_resnet_is_refused(case, run, tmp_path):
    torch.save(tiny.resnet_state(), tmp_path / "resnet.pt")
    with pytest.raises(ValueError, match="need a ViT"):
        _base(case, run(case), tmp_path / "resnet.pt")


def test_incomplete_checkpoints_are_refused(run, clip_path, tmp_path):
    missing = {"CoCoOp": "meta_net.linear2.bias", "MaPLe": "prompt_learner.proj.bias", "VPT": "image_encoder.VPT"}
    for case, key in missing.items():
        folder = _rewrite(run(case), tmp_path / case, lambda k, v, key=key: None if k == key else v)
        with pytest.raises(ValueError, match=f'holds no "{key}"'):
            _base(case, folder, clip_path)


def test_promptkd_needs_the_teacher_that_it_learned_from(run, clip_path, tmp_path):
    with pytest.raises(ValueError, match="TEACHER_DIR must name"):
        _base("PromptKD", run("PromptKD"), clip_path, teacher_directory="")
    with pytest.raises(FileNotFoundError, match="model-best"):
        _base("PromptKD", run("PromptKD"), clip_path, teacher_directory=str(tmp_path))
    torch.save({"state_dict": tiny.teacher_prompts()}, tmp_path / "file.pth.tar")
    base = _base("PromptKD", run("PromptKD"), clip_path, teacher_directory=str(tmp_path / "file.pth.tar"))
    assert base.embed_dim == tiny.TEACHER_DIM
    with pytest.raises(ValueError, match="set TRAINER.CAPT.BASE.TEACHER_NAME"):
        _base("PromptKD", run("PromptKD"), clip_path, teacher_backbone=str(clip_path))
    with pytest.raises(ValueError, match="not of PromptKD"):
        _base("PromptKD", run("IVLP"), clip_path)


def test_promptkd_reads_sentences_with_the_teachers_clip(run, clip_path):
    sentences = ["a red fox has pointed ears.", "both live in water."]
    base = _base("PromptKD", run("PromptKD"), clip_path)
    teacher = PromptedCLIP(load_clip(tiny.save_teacher(Path(clip_path).parent)["TEACHER_NAME"]))
    torch.testing.assert_close(base.encode_sentences(sentences), teacher.text_features(sentences))
