"""Prompt averaging and the agreement with the frozen CLIP."""

import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy, normalize

from trainers.capt.backbone.stock_clip import build_clip, clip
from trainers.imagenet_templates import IMAGENET_TEMPLATES
from trainers.promptsrc import gaussian_weights


@pytest.mark.parametrize(("epochs", "mean", "std"), [(20, 15, 1), (50, 45, 5), (50, 30, 30), (2, 15, 1)])
def test_weights_are_a_gaussian_over_epochs(epochs, mean, std):
    weights = gaussian_weights(epochs, mean, std)
    density = torch.exp(-0.5 * ((torch.arange(1, epochs + 1, dtype=torch.float64) - mean) / std) ** 2)
    torch.testing.assert_close(weights, density / density.sum())
    assert float(weights.sum()) == pytest.approx(1)


def test_weights_far_from_the_mean_do_not_vanish():
    assert gaussian_weights(2, 500, 1).tolist() == pytest.approx([0, 1])  # each density alone underflows


def _note_prompts(trainer, monkeypatch):
    """The prompts of each epoch, as they were before they joined the average."""
    seen, join = [], trainer._join_average

    def note():
        seen.append({name: p.detach().double() for name, p in tiny.trained(trainer.model).items()})
        join()

    monkeypatch.setattr(trainer, "_join_average", note)
    return seen


def test_the_last_epoch_ends_with_the_average(make_trainer, capsys, monkeypatch):
    trainer = make_trainer("PromptSRC", {"GPA_MEAN": 2})
    tiny.set_prompts(trainer.model)
    trainer.num_batches, trainer.batch_idx = 1, 0
    seen = _note_prompts(trainer, monkeypatch)
    for trainer.epoch in range(3):
        trainer.forward_backward(tiny.batch())
    weights = gaussian_weights(3, 2, 1)
    for name, prompt in tiny.trained(trainer.model).items():
        average = sum(w * prompts[name] for w, prompts in zip(weights, seen, strict=True))
        torch.testing.assert_close(prompt.detach().double(), average, rtol=1e-6, atol=1e-7)
    out = capsys.readouterr().out
    assert "Using GPA model for final inference..." in out
    assert "resumed" not in out


def test_a_resumed_run_averages_what_it_has_seen(make_trainer, capsys, monkeypatch):
    trainer = make_trainer("PromptSRC")
    tiny.set_prompts(trainer.model)
    trainer.num_batches, trainer.batch_idx, trainer.start_epoch = 1, 0, 2
    seen = _note_prompts(trainer, monkeypatch)
    trainer.epoch = 2
    trainer.forward_backward(tiny.batch())
    for name, prompt in tiny.trained(trainer.model).items():
        torch.testing.assert_close(prompt.detach().double(), seen[0][name])
    assert "The average covers epochs 3 to 3, since the run was resumed" in capsys.readouterr().out


def test_losses_by_hand(make_trainer):
    trainer = make_trainer("PromptSRC", {"TEXT_LOSS_WEIGHT": 3, "IMAGE_LOSS_WEIGHT": 7})
    tiny.set_prompts(trainer.model)
    trainer.teacher_texts = trainer.encode_teacher_texts()
    data = tiny.batch()
    with torch.no_grad():
        loss, _ = trainer.compute_loss(data["img"], data["label"])
        z, texts = (
            normalize(f, dim=-1) for f in (trainer.model.encode_images(data["img"]), trainer.model.encode_texts())
        )
        stock = build_clip(tiny.clip_state()).float().eval()
        frozen_z = normalize(stock.encode_image(data["img"]), dim=-1)
        names = [name.replace("_", " ") for name in tiny.CLASS_NAMES]
        frozen = [stock.encode_text(clip.tokenize([t.format(name) for name in names])) for t in IMAGENET_TEMPLATES]
        frozen_texts = normalize(torch.stack(frozen).mean(dim=0), dim=-1)
        scale = stock.logit_scale.exp()
        p, q = (scale * z @ texts.t()).softmax(-1), (scale * frozen_z @ frozen_texts.t()).softmax(-1)
        expected = cross_entropy(scale * z @ texts.t(), data["label"])
        expected = expected + 3 * (texts - frozen_texts).abs().mean() + 7 * (z - frozen_z).abs().mean()
        expected = expected + (q * (q / p).log()).sum() / q.numel()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_teacher_texts_are_encoded_once_and_only_for_training(make_trainer, capsys):
    trainer = make_trainer("PromptSRC")
    trainer.model_inference(tiny.batch()["img"])
    assert trainer.teacher_texts is None
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10, 0
    for _ in range(2):
        trainer.forward_backward(tiny.batch())
    assert capsys.readouterr().out.count("Encoding 60 templates") == 1


def test_sixty_templates_with_one_place_for_the_name():
    assert len(set(IMAGENET_TEMPLATES)) == 60
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)
