"""CLIPs as transformers and open_clip save them give their owners' tokens and features; broken files give one line."""

import json
import shutil
import sys
from pathlib import Path

import foreign_clips as foreign
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from torchvision.transforms.functional import normalize, to_tensor

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip, load_prompted_clip
from trainers.capt.backbone.tokenizers import OpenAITokenizer, TransformersTokenizer
from trainers.capt.bases.context import class_tokens, place_context
from trainers.capt.bases.learners import BaseSpec, build_base

transformers = pytest.importorskip("transformers", reason="the extra `test` brings transformers")
open_clip = pytest.importorskip("open_clip", reason="the extra `test` brings open_clip")

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


def features_of(output):
    """The features, of either library's answer."""
    return getattr(output, "pooler_output", output)


class Theirs:
    """A model of the owning library, and the file that it is saved in."""

    def __init__(self, path, model, tokenize):
        self.path, self.model, self.tokenize = path, model, tokenize

    @torch.no_grad()
    def images(self, pixels):
        encode = getattr(self.model, "get_image_features", None) or self.model.encode_image
        return features_of(encode(pixels))

    @torch.no_grad()
    def texts(self, texts):
        encode = getattr(self.model, "get_text_features", None) or self.model.encode_text
        return features_of(encode(self.tokenize(texts)))


def by_transformers(folder, tokenizer, **options):
    model = foreign.transformers_clip(**options)
    foreign.save_transformers(model, folder, tokenizer)
    length = model.config.text_config.max_position_embeddings
    tokenizer = tokenizer or foreign.clip_tokenizer()

    def tokenize(texts):
        return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids

    return Theirs(folder, model, tokenize)


def by_siglip(folder, make_tokenizer):
    tokenizer = make_tokenizer(folder)
    model = foreign.siglip(len(tokenizer), foreign.SIDE + 3)  # the last pixels fill no patch
    foreign.save_transformers(model, folder, tokenizer)
    options = {"padding": "max_length", "truncation": True, "max_length": foreign.SIGLIP_CONTEXT}
    return Theirs(folder, model, lambda texts: tokenizer(texts, **options, return_tensors="pt").input_ids)


def by_open_clip_siglip(folder):
    tokenizer = foreign.siglip_tokenizer(folder)
    config = foreign.open_clip_siglip_config(len(tokenizer))
    model = foreign.open_clip_model(config)
    foreign.save_open_clip(model, config, folder, tokenizer=tokenizer)
    theirs = open_clip.tokenizer.HFTokenizer(str(folder), foreign.SIGLIP_CONTEXT, clean="canonicalize")
    return Theirs(folder, model, theirs)


def by_open_clip(folder, config, safe=True):
    model = foreign.open_clip_model(config)
    foreign.save_open_clip(model, config, folder, safe)
    length = config["text_cfg"]["context_length"]
    return Theirs(folder, model, open_clip.SimpleTokenizer(context_length=length))


WIDE = {"vision": {"width": 160, "head_width": 80, "patch_size": 16}, "text": {"width": 96, "heads": 2}}
RESNET = {"vision": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "mlp_ratio": None, "patch_size": None}}
MAKERS = {
    "transformers": lambda folder: by_transformers(folder, foreign.clip_tokenizer()),
    "transformers, QuickGELU": lambda folder: by_transformers(folder, None, activation="quick_gelu"),
    "transformers, tanh, context of 20": lambda folder: by_transformers(
        folder, foreign.clip_tokenizer(), activation="gelu_pytorch_tanh", context_length=20
    ),
    "open_clip": lambda folder: by_open_clip(folder, foreign.open_clip_config()),
    "open_clip, QuickGELU, pickled": lambda folder: by_open_clip(folder, foreign.open_clip_config(True), safe=False),
    "open_clip, as ViT-H": lambda folder: by_open_clip(folder, foreign.open_clip_config(**WIDE)),
    "open_clip, text apart": lambda folder: by_open_clip(folder, {**foreign.open_clip_config(), "custom_text": True}),
    "open_clip, ResNet": lambda folder: by_open_clip(folder, foreign.open_clip_config(**RESNET)),
    "SigLIP": lambda folder: by_siglip(folder, foreign.siglip_tokenizer),
    "SigLIP 2": lambda folder: by_siglip(folder, lambda _: foreign.siglip2_tokenizer()),
    "open_clip, SigLIP": by_open_clip_siglip,
}
SIGLIPS = [layout for layout in MAKERS if "SigLIP" in layout]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(layout)``: the model of a layout, made once."""
    kept = {}

    def make(layout):
        if layout not in kept:
            kept[layout] = MAKERS[layout](tmp_path_factory.mktemp("layout"))
        return kept[layout]

    return make


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


# SigLIP


@pytest.mark.parametrize("layout", SIGLIPS)
def test_the_pooled_token_stands_for_the_class_token(made, layout):
    """It is pooled from the patch tokens, and what the head makes of it is the feature."""
    theirs = made(layout)
    clip = PromptedCLIP(load_clip(str(theirs.path)))
    features = clip.encode_image(torch.randn(2, 3, clip.input_size, clip.input_size))
    assert features.tokens.shape == (2, clip.grid**2, 96)
    visual = clip.clip.visual
    torch.testing.assert_close(visual.attn_pool(features.tokens), features.cls)
    torch.testing.assert_close(visual.ln_post(features.cls) @ visual.proj, features.feature)
    base = build_base(clip, BaseSpec())
    torch.testing.assert_close(base.project(features.cls), features.feature)
    prompts = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    prompted = clip.encode_image(torch.zeros(1, 3, clip.input_size, clip.input_size), prompts, prompts.unsqueeze(0))
    assert prompted.tokens.shape == (1, clip.grid**2, 96)


def test_answers_as_siglip_itself(made):
    """Its probability of a pair, a sigmoid with a bias, from our features, scale and bias."""
    theirs = made("SigLIP")
    clip = PromptedCLIP(load_clip(str(theirs.path)))
    pixels = torch.randn(2, 3, clip.input_size, clip.input_size)
    with torch.no_grad():
        expected = theirs.model(input_ids=theirs.tokenize(foreign.SENTENCES), pixel_values=pixels).logits_per_image
    z = torch.nn.functional.normalize(clip.encode_image(pixels).feature, dim=-1)
    logits = clip.logit_scale * z @ clip.text_features(foreign.SENTENCES).t() + clip.clip.logit_bias
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", SIGLIPS)
def test_a_context_stands_in_front_of_the_name(made, layout):
    """There is no start token: the learned tokens are the first, and words in their place give the words' features."""
    clip = PromptedCLIP(load_clip(str(made(layout).path)))
    assert (clip.tokenizer.start, len(clip.tokenizer.encode(clip.tokenizer.placeholder(5)))) == ([], 5)
    context = clip.embed(torch.tensor([clip.tokenizer.encode("a photo of a")]))[0]
    names = ["cup", "sea_view"]
    tokens = class_tokens(clip, names, clip.tokenizer.placeholder(len(context)), len(context))
    assert tokens.prefix.shape[1] == 0
    features = clip.encode_text(place_context(context, tokens.prefix, tokens.suffix, length=tokens.length), tokens.eot)
    expected = clip.text_features(["a photo of a cup.", "a photo of a sea view."])
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), expected, rtol=0, atol=1e-5)
    front = class_tokens(clip, names, clip.tokenizer.placeholder(len(context)), len(context), "front")
    moved = place_context(context, front.prefix, front.suffix, front.order, front.length)
    num_name = len(clip.tokenizer.encode("a photo of a cup")) - len(context)
    end = len(context) + num_name
    name = clip.embed(torch.tensor([clip.tokenizer.encode("a photo of a cup.")[len(context) : end]]))[0]
    torch.testing.assert_close(moved[0, :num_name], name)
    torch.testing.assert_close(moved[0, num_name : num_name + len(context)], context)


def test_a_siglip_needs_its_tokenizer(made, tmp_path, monkeypatch):
    shutil.copytree(made("SigLIP").path, tmp_path / "whole")
    for name in ("spiece.model", "tokenizer_config.json"):
        shutil.move(tmp_path / "whole" / name, tmp_path / name)
    for path in (tmp_path / "whole").glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer for its .* tokens; copy its files there"):
        load_clip(str(tmp_path / "whole"))
    (tmp_path / "whole" / "spiece.model").write_bytes(b"cut")
    shutil.copy(tmp_path / "tokenizer_config.json", tmp_path / "whole")
    with pytest.raises(ValueError, match="cannot be read .*; are its files whole") as caught:
        load_clip(str(tmp_path / "whole"))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs the package transformers .*pip install"):
        load_clip(str(made("SigLIP").path))


def test_a_tokenizer_that_joins_words_gets_no_prompts(made):
    """Where context and name share a token, no learned token could stand for the context alone."""
    clip = PromptedCLIP(load_clip(str(made("SigLIP 2").path)))
    clip.clip.tokenizer = TransformersTokenizer(foreign.siglip2_tokenizer(keep_words=False), reads_last=True)
    with pytest.raises(ValueError, match='the tokens of "a photo of a" run into those of the class names'):
        class_tokens(clip, ["cup", "otter"], "a photo of a", len(clip.tokenizer.encode("a photo of a")))


def test_tokenizers_that_cannot_be_used():
    tokenizer = foreign.siglip2_tokenizer()
    wordy = TransformersTokenizer(tokenizer, reads_last=True, clean=lambda text: text + " qqq")
    with pytest.raises(ValueError, match="no token for any of X"):
        wordy.placeholder(2)
    tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match='pads in front of a text.*set its padding_side to "right"'):
        TransformersTokenizer(tokenizer, reads_last=True)
    tokenizer.padding_side = "right"
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="puts 0 tokens behind a text"):
        TransformersTokenizer(tokenizer)


# open_clip by names


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
    from trainers.capt.backbone.open_clip_layout import _sizes

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
    from trainers.capt.backbone.open_clip_layout import _sizes

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


# Images and their normalisation


def test_input_as_the_file_says(made, capsys):
    path = str(made("open_clip").path)
    needed = made("open_clip").model.visual.image_mean, made("open_clip").model.visual.image_std
    assert load_prompted_clip(path, (32, 32), "fp32", needed).input_size == 32
    assert load_prompted_clip(path, (32, 32), "fp32").input_size == 32
    with pytest.raises(ValueError, match=r"PIXEL_MEAN and PIXEL_STD must be \[0.48.*add INPUT.PIXEL_MEAN \"\[0.48"):
        load_prompted_clip(path, (32, 32), "fp32", ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]))


# Files that hold no CLIP, or half of one


def broken(made, folder, layout, change):
    shutil.copytree(made(layout).path, folder, dirs_exist_ok=True)
    change(folder)
    return folder


def without(key):
    def change(folder):
        path = next(Path(folder).glob("*.safetensors"))
        state = load_file(path)
        save_file({name: value for name, value in state.items() if key not in name}, path)

    return change


def configured(file_name, tower, **values):
    def change(folder):
        path = Path(folder) / file_name
        config = json.loads(path.read_text())
        model = config.get("model_cfg", config)
        (model[tower] if tower else model).update(values)
        path.write_text(json.dumps(config))

    return change


def cut(name):
    def change(folder):
        path = Path(folder) / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def removed(name):
    return lambda folder: (Path(folder) / name).unlink()


BROKEN = [
    ("transformers", cut("model.safetensors"), "cannot be read as CLIP weights .*is the file complete"),
    ("transformers", cut("config.json"), 'config.json" cannot be read as JSON'),
    ("transformers", removed("model.safetensors"), "holds no CLIP: config.json with model.safetensors or"),
    ("transformers", removed("config.json"), "holds no CLIP: config.json with model.safetensors or"),
    ("transformers", without("layers.1.mlp.fc2.weight"), "is not a complete CLIP: Missing key.*resblocks.1.mlp.c_proj"),
    ("transformers", without("self_attn.k_proj"), "is not a complete CLIP: Missing key.*in_proj_weight"),
    ("transformers", without("model."), "holds no text_model"),
    ("transformers", configured("config.json", "", model_type="blip"), "describes a model of type 'blip'"),
    ("transformers", configured("config.json", "vision_config", hidden_act="silu"), 'activation "silu" is none of'),
    ("transformers", configured("config.json", "text_config", num_hidden_layers=1), "Unexpected key"),
    ("transformers", configured("config.json", "vision_config", num_attention_heads=5), "96 channels .* 5 heads"),
    (
        "transformers",
        configured("config.json", "vision_config", patch_size=16),
        "is not a complete CLIP: size mismatch",
    ),
    ("SigLIP", cut("model.safetensors"), "cannot be read as CLIP weights"),
    ("SigLIP", without("head.probe"), "is not a complete CLIP: Missing key.*attn_pool.query"),
    ("SigLIP", without("text_model.head.bias"), "is not a complete CLIP: Missing key.*ln_final.projection.bias"),
    ("SigLIP", configured("config.json", "vision_config", vision_use_head=False), "without the pooling head"),
    ("SigLIP", configured("config.json", "", model_type="siglip2"), "describes a model of type 'siglip2'"),
    ("open_clip, SigLIP", without("attn_pool.kv"), "is not a complete CLIP"),
    ("open_clip, SigLIP", configured("open_clip_config.json", "vision_cfg", timm_pool="avg"), "neither a CLIP nor"),
    (
        "open_clip, SigLIP",
        configured("open_clip_config.json", "text_cfg", pool_type="argmax"),
        "text_cfg.pool_type arg",
    ),
    ("open_clip", cut("open_clip_model.safetensors"), "cannot be read as CLIP weights"),
    ("open_clip, QuickGELU, pickled", cut("open_clip_pytorch_model.bin"), "cannot be read as CLIP weights"),
    ("open_clip", cut("open_clip_config.json"), "cannot be read as JSON"),
    ("open_clip", without("ln_post"), "is not a complete CLIP: Missing key.*visual.ln_post"),
    ("open_clip", configured("open_clip_config.json", "text_cfg", layers=3), "Missing key.*resblocks.2"),
    ("open_clip", configured("open_clip_config.json", "text_cfg", pool_type="eos"), "text_cfg.pool_type eos"),
    ("open_clip", configured("open_clip_config.json", "vision_cfg", ls_init_value=1), "vision_cfg.ls_init_value"),
    ("open_clip", configured("open_clip_config.json", "", embed_dim=None), "embed_dim must be a whole number"),
    ("open_clip", configured("open_clip_config.json", "", vision_cfg=None), "describes no CLIP"),
]


@pytest.mark.parametrize(("layout", "change", "words"), BROKEN, ids=[f"{i}-{b[2][:30]}" for i, b in enumerate(BROKEN)])
def test_a_broken_file_gives_one_line(made, tmp_path, layout, change, words):
    folder = broken(made, tmp_path / "clip", layout, change)
    with pytest.raises(ValueError, match=words) as caught:
        load_clip(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_files_that_need_their_configuration(made, tmp_path):
    """Heads and activation stand in no state dict: without the configuration they would be guessed."""
    shutil.copy(made("transformers").path / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="layout of transformers, whose heads and activation stand in config.json"):
        load_clip(str(tmp_path / "model.safetensors"))
    shutil.copy(made("open_clip").path / "open_clip_model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="is open_clip's, whose heads and activation stand in open_clip_config.json"):
        load_clip(str(tmp_path / "open_clip_model.safetensors"))


def test_a_part_that_is_missing(made, tmp_path):
    made("transformers").model.save_pretrained(tmp_path, max_shard_size="300KB")
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    with pytest.raises(ValueError, match="which is not beside it; copy all parts"):
        load_clip(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"logit_scale": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="lists no files beside it"):
        load_clip(str(tmp_path))


def test_nothing_in_pytorch_model_bin_is_run(made, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copy(made("transformers").path / "config.json", tmp_path)
    torch.save({"text_model.x": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as CLIP weights"):
        load_clip(str(tmp_path))
    assert not (tmp_path / "ran").exists()
