"""Zero-shot CLIP against the stock model's own forward."""

import pytest
import tiny
import torch

from trainers.capt.backbone.stock_clip import build_clip, clip
from trainers.capt.bases.templates import CUSTOM_TEMPLATES, IMAGENET_TEMPLATES_SELECT


def _stock_logits(templates, class_names=tiny.CLASS_NAMES):
    model = build_clip(tiny.clip_state()).float().eval()
    names = [name.replace("_", " ") for name in class_names]
    with torch.no_grad():
        mean = 0
        for template in templates:
            text = model.encode_text(clip.tokenize([template.format(name) for name in names]))
            mean = mean + text / text.norm(dim=-1, keepdim=True)
        mean = mean / mean.norm(dim=-1, keepdim=True)
        image = model.encode_image(tiny.batch()["img"])
        return model.logit_scale.exp() * (image / image.norm(dim=-1, keepdim=True)) @ mean.t()


@pytest.mark.parametrize("dataset", ["Caltech101", "EuroSAT", "DescribableTextures"])
def test_logits_are_the_stock_models(dataset, make_trainer):
    trainer = make_trainer("ZeroshotCLIP", options=["DATASET.NAME", dataset])
    logits = trainer.model_inference(tiny.batch()["img"])
    torch.testing.assert_close(logits, _stock_logits([CUSTOM_TEMPLATES[dataset]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dataset", "num_templates"), [("ImageNet", 7), ("OxfordPets", 8)])
def test_ensemble_averages_normalised_features(dataset, num_templates, make_trainer, capsys):
    trainer = make_trainer("ZeroshotCLIP2", options=["DATASET.NAME", dataset])
    assert f"Prompt ensembling (n={num_templates})" in capsys.readouterr().out
    templates = [*IMAGENET_TEMPLATES_SELECT, *([] if dataset == "ImageNet" else [CUSTOM_TEMPLATES[dataset]])]
    logits = trainer.model_inference(tiny.batch()["img"])
    torch.testing.assert_close(logits, _stock_logits(templates), rtol=1e-5, atol=1e-5)


def test_ensembles_do_not_grow_from_run_to_run(make_trainer):
    for _ in range(2):
        assert len(make_trainer("ZeroshotCLIP2").templates()) == 8


def test_a_data_set_without_a_template_gets_the_plain_one(make_trainer, capsys):
    make_trainer("ZeroshotCLIP", options=["DATASET.NAME", "MyPhotos"])
    assert "Prompts: ['a photo of a face.'," in capsys.readouterr().out


def test_training_is_refused(make_trainer):
    with pytest.raises(ValueError, match="ZeroshotCLIP trains nothing; add --eval-only"):
        make_trainer("ZeroshotCLIP").train()


def test_nothing_needs_to_be_loaded(make_trainer):
    make_trainer("ZeroshotCLIP").load_model("", epoch=None)
