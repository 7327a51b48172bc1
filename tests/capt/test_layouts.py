"""CLIPs as transformers and open_clip save them give their owners' tokens and features, from whatever file."""

import json
import shutil

import foreign_clips as foreign
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from torchvision.transforms.functional import normalize, to_tensor

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip
from trainers.capt.backbone.tokenizers import OpenAITokenizer

pytest.importorskip("transformers", reason="the extra `test` brings transformers")
pytest.importorskip("open_clip", reason="the extra `test` brings open_clip")

from layouts import MAKERS, SIGLIPS  # noqa: E402

PHOTOS = ("Faces/image_0001.jpg", "anchor/image_0005.jpg", "wrench/image_0010.jpg")


@pytest.fixture(scope="module")
def photographs(shared_data):
    """Real photographs as CLIP sees them, (3, 3, 32, 32)."""
    folder = shared_data / "caltech-101" / "101_ObjectCategories"
    side = foreign.SIDE
    images = [
        Image.open(folder / name).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for name in PHOTOS
    ]
    pixels = torch.stack([to_tensor(image) for image in images])
    return normalize(pixels, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def check_images(theirs, pixels):
    clip = PromptedCLIP(load_clip(str(theirs.path)))
    pixels = interpolate(pixels, clip.input_size, mode="bilinear")
    expected = theirs.images(pixels)
    torch.testing.assert_close(clip.encode_image(pixels).feature, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.clip.encode_image(pixels), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1  # not all alike, so that equality says something


@pytest.mark.parametrize("layout", MAKERS)
def test_images_as_their_owner(made, layout):
    check_images(
        made(layout), torch.randn(3, 3, foreign.SIDE, foreign.SIDE, generator=torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize("layout", MAKERS)
def test_photographs_as_their_owner(made, layout, photographs):
    check_images(made(layout), photographs)


@pytest.mark.parametrize("layout", MAKERS)
def test_texts_as_their_owner(made, layout):
    theirs = made(layout)
    clip = PromptedCLIP(load_clip(str(theirs.path)))
    ids, their_ids = clip.tokenize(foreign.SENTENCES), theirs.tokenize(foreign.SENTENCES)
    assert ids.shape == their_ids.shape
    for own, other, end in zip(ids, their_ids, clip.tokenizer.end_of(ids), strict=True):
        assert own[: end + 1].tolist() == other[: end + 1].tolist()  # what stands behind the end is padding
    expected = theirs.texts(foreign.SENTENCES)
    short, end = clip.tokenize_short(foreign.SENTENCES[:2])
    assert (short.shape[1] < ids.shape[1]) == (layout not in SIGLIPS)  # SigLIP reads the padding, too
    features = clip.encode_text(clip.embed(short), end)
    torch.testing.assert_close(features, expected[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.clip.encode_text(ids), expected, rtol=0, atol=1e-5)
    unit = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(clip.text_features(foreign.SENTENCES), unit, rtol=0, atol=1e-5)
    scale = theirs.model.logit_scale.exp().reshape(())
    torch.testing.assert_close(clip.logit_scale, scale.detach())


def test_sizes_come_from_the_file(made):
    clip = PromptedCLIP(load_clip(str(made("transformers, tanh, context of 20").path)))
    sizes = (clip.input_size, clip.grid, clip.width, clip.text_width, clip.embed_dim, clip.context_length)
    assert sizes == (32, 4, 96, 64, 48, 20)
    assert [len(tower.resblocks) for tower in (clip.vit.transformer, clip.clip.transformer)] == [3, 2]
    assert [tower.resblocks[0].attn.num_heads for tower in (clip.vit.transformer, clip.clip.transformer)] == [4, 8]
    assert not any(p.requires_grad for p in clip.parameters())
    assert all(p.dtype == torch.float32 for p in clip.parameters())


def test_forms_of_the_same_weights(made, tmp_path, photographs):
    """A file instead of its folder, pytorch_model.bin, several parts, half precision, names of older versions."""
    theirs = made("transformers")
    expected = PromptedCLIP(load_clip(str(theirs.path))).encode_image(photographs).feature
    state = load_file(theirs.path / "model.safetensors")
    forms = {name: tmp_path / name for name in ("pickled", "parts", "half", "old")}
    for folder in forms.values():
        folder.mkdir()
        shutil.copy(theirs.path / "config.json", folder)
    torch.save(state, forms["pickled"] / "pytorch_model.bin")
    theirs.model.save_pretrained(forms["parts"], max_shard_size="300KB")
    assert len(list(forms["parts"].glob("*.safetensors"))) > 1
    save_file({key: value.half() for key, value in state.items()}, forms["half"] / "model.safetensors")
    count = torch.arange(77).unsqueeze(0)
    old = {**state, "text_model.embeddings.position_ids": count, "vision_model.embeddings.position_ids": count}
    torch.save(old, forms["old"] / "pytorch_model.bin")
    for name in (theirs.path / "model.safetensors", forms["pickled"], forms["parts"], forms["old"]):
        assert torch.equal(PromptedCLIP(load_clip(str(name))).encode_image(photographs).feature, expected), name
    half = PromptedCLIP(load_clip(str(forms["half"]))).encode_image(photographs).feature
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0.02)


def test_what_a_config_leaves_out(made, tmp_path):
    """transformers writes no value that is the default of its own classes; older files hold a second copy."""
    theirs = made("transformers, QuickGELU")
    config = json.loads((theirs.path / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        for key in ("hidden_act", "layer_norm_eps", "max_position_embeddings", "vocab_size"):
            config[tower].pop(key, None)
    config["text_config_dict"] = {"num_attention_heads": config["text_config"].pop("num_attention_heads")}
    config["vision_config_dict"] = None
    shutil.copy(theirs.path / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole, short = load_clip(str(theirs.path)), load_clip(str(tmp_path))
    assert whole.sizes == short.sizes
    assert whole.sizes.text.heads == 8
    assert whole.sizes.text.activation == "quick_gelu"


def test_openai_s_vocabulary_is_known_in_all_its_files(made, tmp_path):
    """vocab.json of older versions and tokenizer.json of newer ones: neither needs transformers."""
    assert isinstance(load_clip(str(made("transformers").path)).tokenizer, OpenAITokenizer)
    shutil.copytree(made("transformers, QuickGELU").path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "vocab.json").write_text(json.dumps(foreign.stock_clip.tokenizer.encoder))
    assert isinstance(load_clip(str(tmp_path)).tokenizer, OpenAITokenizer)
