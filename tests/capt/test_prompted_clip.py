"""PromptedCLIP is the stock CLIP to the last bit; every form of file that holds one, and files that hold none."""

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
import tiny_capt
import torch

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip, tokenize
from trainers.capt.backbone.stock_clip import build_clip, tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

TEXTS = ["a photo of a cup.", "otter", "a painting of two red foxes at sea"]


@pytest.fixture(scope="module")
def stock(small_clip):
    return load_clip(str(small_clip))


def test_images_as_stock(stock):
    pixels = tiny_capt.images(3)
    features = PromptedCLIP(stock).encode_image(pixels)
    with torch.no_grad():
        assert torch.equal(features.feature, stock.encode_image(pixels))
        visual = stock.visual
        torch.testing.assert_close(visual.ln_post(features.cls) @ visual.proj, features.feature)
    assert features.tokens.shape == (3, 16, 128)


def test_texts_as_stock(stock):
    clip = PromptedCLIP(stock)
    ids = clip.tokenize(TEXTS)
    with torch.no_grad():
        expected = stock.encode_text(ids)
        assert torch.equal(clip.encode_text(clip.embed(ids), ids.argmax(-1)), expected)
        unit = torch.nn.functional.normalize(expected, dim=-1)
        torch.testing.assert_close(clip.text_features(TEXTS, chunk=2), unit, rtol=1e-5, atol=1e-6)


def test_resnet_as_stock(tmp_path):
    torch.save(tiny.resnet_state(), tmp_path / "resnet.pt")
    model = load_clip(str(tmp_path / "resnet.pt"))
    clip, pixels = PromptedCLIP(model), tiny_capt.images(2)
    features = clip.encode_image(pixels)
    with torch.no_grad():
        assert torch.equal(features.feature, model.encode_image(pixels))
        stem = model.visual.relu3(model.visual.bn3(model.visual.conv3(stem_of(model.visual, pixels))))
        x = model.visual.layer4(
            model.visual.layer3(model.visual.layer2(model.visual.layer1(model.visual.avgpool(stem))))
        )
        torch.testing.assert_close(features.cls, x.mean(dim=(2, 3)))  # what the attention pool asks with
    assert (features.tokens, clip.is_vit, clip.width, clip.grid) == (None, False, None, None)
    assert not model.visual.attnpool._forward_pre_hooks
    with pytest.raises(ValueError, match="visual prompts need a ViT"):
        clip.encode_image(pixels, torch.zeros(1, 8))


def stem_of(visual, pixels):
    """The first two convolutions of a ResNet."""
    x = visual.relu1(visual.bn1(visual.conv1(pixels)))
    return visual.relu2(visual.bn2(visual.conv2(x)))


def test_sizes(stock):
    clip = PromptedCLIP(stock)
    sizes = (clip.input_size, clip.grid, clip.width, clip.text_width, clip.embed_dim, clip.context_length)
    assert sizes == (32, 4, 128, 64, 64, 77)
    torch.testing.assert_close(clip.logit_scale, torch.tensor(2.5).exp())
    assert clip.dtype == torch.float32
    assert not any(p.requires_grad for p in clip.parameters())
    assert not stock.training


def test_prompts_enter_where_the_family_puts_them(stock):
    """By hand: text prompts replace the tokens behind the start, visual ones the last tokens of a block."""
    clip = PromptedCLIP(stock)
    ids = clip.tokenize(TEXTS[:1])
    deep = torch.randn(1, 2, 64, generator=tiny_capt.generator())
    with torch.no_grad():
        x = (clip.embed(ids) + stock.positional_embedding).transpose(0, 1)
        x = stock.transformer.resblocks[0](x)
        x[1:3] = deep[0].unsqueeze(1)
        x = stock.ln_final(stock.transformer.resblocks[1](x).transpose(0, 1))
        expected = x[torch.arange(1), ids.argmax(-1)] @ stock.text_projection
        torch.testing.assert_close(clip.encode_text(clip.embed(ids), ids.argmax(-1), deep), expected)

        prompts, visual_deep = torch.randn(2, 2, 128, generator=tiny_capt.generator(1))
        v, pixels = stock.visual, tiny_capt.images(2)
        x = v.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(2, 1, -1), x], 1) + v.positional_embedding
        x = v.ln_pre(torch.cat([x, prompts.expand(2, -1, -1)], 1)).transpose(0, 1)
        x = v.transformer.resblocks[0](x)
        x[-2:] = visual_deep.unsqueeze(1)
        x = v.transformer.resblocks[1](x).transpose(0, 1)
        out = clip.encode_image(pixels, prompts, visual_deep.unsqueeze(0))
        torch.testing.assert_close(out.cls, x[:, 0])
        torch.testing.assert_close(out.tokens, x[:, 1:17])  # without the prompts


def test_long_texts_are_cut_and_counted(caplog):
    words = "otter " * 200
    with caplog.at_level(logging.WARNING):
        ids = tokenize([words, "otter"])
    assert ids.shape == (2, 77)
    assert ids[0, 0] == 49406
    assert ids[0, -1] == ids[0].max() == 49407  # the end token is kept
    assert ids[0, 1:-1].tolist() == tokenizer.encode(words)[:75]
    assert "1 of 2 texts were cut to the context of 77 tokens" in caplog.text


# Files


def same_weights(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["plain", "wrapped", "module", "half"])
def test_forms_of_a_state_dict(tmp_path, form):
    state = tiny_capt.clip_state()
    saved = {
        "plain": state,
        "wrapped": {"state_dict": state, "epoch": 3},
        "module": {f"module.{name}": value for name, value in state.items()},
        "half": {name: value.half() for name, value in state.items()},
    }[form]
    torch.save(saved, tmp_path / "clip.pt")
    model = load_clip(str(tmp_path / "clip.pt"))
    tolerance = 1e-3 if form == "half" else 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=tolerance, atol=tolerance)
        assert value.dtype == torch.float32


def test_torchscript_archive(tmp_path):
    """OpenAI's own form of file."""
    model = build_clip(tiny_capt.clip_state()).float().eval()

    class Both(torch.nn.Module):
        def __init__(self, clip):
            super().__init__()
            for name, child in clip.named_children():
                self.add_module(name, child)
            for name in ("positional_embedding", "text_projection", "logit_scale"):
                setattr(self, name, getattr(clip, name))

        def forward(self, image):
            return self.visual(image) * self.logit_scale

    path = tmp_path / "clip.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Both(model), tiny_capt.images(1)).save(str(path))
    assert same_weights(load_clip(str(path)), model.state_dict())


def test_files_that_hold_no_clip(tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r'file.pt" cannot be read as CLIP weights .* is the file complete\?'
    ) as caught:
        load_clip(str(path))
    assert "\n" not in str(caught.value)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no state dict of tensors"):
        load_clip(str(path))
    torch.save({"fc.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="holds no CLIP in OpenAI's layout"):
        load_clip(str(path))
    torch.save({k: v for k, v in tiny_capt.clip_state().items() if "ln_post" not in k}, path)
    with pytest.raises(ValueError, match="is not a complete CLIP in OpenAI's layout"):
        load_clip(str(path))


def test_nothing_in_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"text_projection": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read as CLIP weights"):
        load_clip(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match=r'"ViT-B/61" is neither a file nor one of .*do you mean "ViT-B/16"'):
        load_clip("ViT-B/61")


def test_no_network(monkeypatch):
    def offline(name, folder):
        raise OSError("no route")

    monkeypatch.setattr("trainers.capt.backbone.stock_clip.download", offline)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(no route\); put ViT-B-16.pt into"):
        load_clip("ViT-B/16")


def test_a_process_of_many_runs_reads_a_clip_once(small_clip, tmp_path, monkeypatch):
    """What one run does to its CLIP is not seen by the next, and a file that changed is read anew."""
    from trainers.capt.backbone import weights

    path, reads = tmp_path / "clip.pt", []
    path.write_bytes(small_clip.read_bytes())
    read = weights._read
    monkeypatch.setattr(weights, "_read", lambda name: reads.append(name) or read(name))
    monkeypatch.setattr(weights, "_is_keeping", False)
    monkeypatch.setattr(weights, "_kept", {})
    plain = load_clip(str(path))
    load_clip(str(path))
    assert len(reads) == 2
    weights.keep_weights()
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        model = load_clip(str(path))
        drawn.append(torch.rand(1))  # a run's prompts, which must not depend on the runs before
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not model.training
        with torch.no_grad():
            model.visual.proj.add_(1)
        model.visual.requires_grad_(True)
    assert drawn[0] == drawn[1]
    assert len(reads) == 3
    os.utime(path, (1, 1))
    load_clip(str(path))
    assert len(reads) == 4
