"""CLIPs by open_clip's names and by those of the Hugging Face hub, without a network."""

import json
import shutil
import sys

import foreign_clips as foreign
import pytest
import torch
from safetensors.torch import load_file

from trainers.capt.backbone.open_clip_layout import _sizes
from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip

transformers = pytest.importorskip("transformers", reason="the extra `test` brings transformers")
open_clip = pytest.importorskip("open_clip", reason="the extra `test` brings open_clip")


def test_open_clip_names(made, tmp_path, monkeypatch):
    """A model's name with a file, and with a tag, whose weights open_clip fetches."""
    theirs = made("open_clip")
    open_clip.add_model_config(_config_file(tmp_path / "Small-B-8.json", foreign.open_clip_config()))
    open_clip.add_model_config(_config_file(tmp_path / "Small-B-8-quickgelu.json", foreign.open_clip_config(True)))
    weights = tmp_path / "mine.pt"
    training = {"epoch": 3, "name": "run", "optimizer": {}}
    state = {f"module.{key}": value for key, value in theirs.model.state_dict().items()}
    torch.save({**training, "state_dict": state}, weights)
    pixels = torch.randn(2, 3, 32, 32)
    named = PromptedCLIP(load_clip(f"open_clip:Small-B-8/{weights}"))
    torch.testing.assert_close(named.encode_image(pixels).feature, theirs.images(pixels), rtol=0, atol=1e-5)
    quick = PromptedCLIP(load_clip(f"open_clip:Small-B-8-quickgelu/{weights}"))
    assert (quick.encode_image(pixels).feature - theirs.images(pixels)).abs().max() > 1e-3

    with pytest.raises(ValueError, match=r"a checkpoint of open_clip's training.*open_clip:MODEL/") as caught:
        load_clip(str(weights))
    assert "\n" not in str(caught.value)

    tags = {"mine": {"url": "x", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "other": {"quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Small-B-8", tags)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(weights))
    tagged = PromptedCLIP(load_clip("open_clip:Small-B-8/mine"))
    assert torch.equal(tagged.encode_image(pixels).feature, named.encode_image(pixels).feature)
    assert tagged.clip.pixel_stats == ([0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match="trained with QuickGELU.*name it as open_clip:Small-B-8-quickgelu/other"):
        load_clip("open_clip:Small-B-8/other")
    with pytest.raises(FileNotFoundError, match=r'"minf" is not a file or a tag.*\["?\'mine.*do you mean "mine"'):
        load_clip("open_clip:Small-B-8/minf")

    def offline(tag):
        raise OSError("no route")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(no route\).*open_clip:Small-B-8/PATH"):
        load_clip("open_clip:Small-B-8/mine")


def _config_file(path, config):
    path.write_text(json.dumps(config))
    return path


def test_unknown_open_clip_names(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r'"ViT-B-61" is not a model of open_clip.*do you mean "ViT-B-16'):
        load_clip("open_clip:ViT-B-61/laion2b_s34b_b88k")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="needs the package open_clip .*pip install"):
        load_clip("open_clip:ViT-B-16/laion2b_s34b_b88k")


def test_published_models_of_open_clip_are_understood():
    """Sizes of the names that people use, read from open_clip's own configurations; no weights are needed."""
    expected = {  # heads of the image tower, its activation, its input, joint width
        "ViT-B-16": (12, "gelu", 224, 512),
        "ViT-B-16-quickgelu": (12, "quick_gelu", 224, 512),
        "ViT-L-14-336": (16, "gelu", 336, 768),
        "ViT-H-14": (16, "gelu", 224, 1024),
        "ViT-H-14-378-quickgelu": (16, "quick_gelu", 378, 1024),
        "ViT-g-14": (16, "gelu", 224, 1024),
        "ViT-bigG-14": (16, "gelu", 224, 1280),
    }
    for name, figures in expected.items():
        sizes = _sizes(open_clip.get_model_config(name), name)
        assert (sizes.vision.heads, sizes.vision.activation, sizes.image_size, sizes.embed_dim) == figures, name


@pytest.mark.slow
def test_every_model_of_open_clip_is_understood_or_refused_in_one_line():
    understood, refused = [], []
    for name in set(open_clip.list_models()) - {"Small-B-8", "Small-B-8-quickgelu"}:  # added by another test
        try:
            _sizes(open_clip.get_model_config(name), name)
            understood.append(name)
        except ValueError as error:
            refused.append(str(error))
    assert all("neither a CLIP nor a SigLIP: " in message and "\n" not in message for message in refused)
    assert len(understood) >= 60
    for name in ("RN50", "ViT-B-16", "ViT-gopt-16-SigLIP2-384", "ViT-SO400M-14-SigLIP-384", "ViT-bigG-14-quickgelu"):
        assert name in understood
    siglip = _sizes(open_clip.get_model_config("ViT-SO400M-14-SigLIP-384"), "it")
    assert (siglip.vision.heads, siglip.vision.mlp_width, siglip.patch_size, siglip.context_length) == (
        16,
        4304,
        14,
        64,
    )


# The Hugging Face hub by names


def test_names_of_the_hub(made, tmp_path, monkeypatch):
    """The hub's cache is asked for safetensors, then for pickled tensors, and never for more."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(made("transformers").path / "config.json", pickled)
    torch.save(load_file(made("transformers").path / "model.safetensors"), pickled / "pytorch_model.bin")
    asked = []

    def snapshot(name, allow_patterns):
        asked.append((name, allow_patterns[-1]))
        there = {"org/new": made("transformers").path, "org/old": pickled if "bin" in allow_patterns[-1] else tmp_path}
        return str(there.get(name, tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    pixels = torch.randn(1, 3, 32, 32)
    expected = made("transformers").images(pixels)
    for name in ("org/new", "org/old"):
        feature = PromptedCLIP(load_clip(f"transformers:{name}")).encode_image(pixels).feature
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-5)
    safe, pickled_weights = "model*.safetensors*", "pytorch_model*.bin*"
    assert asked == [("org/new", safe), ("org/old", safe), ("org/old", pickled_weights)]
    with pytest.raises(ValueError, match="transformers:org/none.* no CLIP"):
        load_clip("transformers:org/none")

    def offline(name, allow_patterns):
        raise OSError("no route\nand more words")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConnectionError, match=r"cannot be had from the hub \(no route\); fetch its folder") as caught:
        load_clip("transformers:org/new")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="needs huggingface_hub .*pip install"):
        load_clip("transformers:org/new")
    with pytest.raises(FileNotFoundError, match="hub is named as transformers:openai/clip-vit-base-patch16"):
        load_clip("openai/clip-vit-base-patch16")
