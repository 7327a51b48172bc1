"""SigLIP: the pooled token in place of the class token, no start token, a tokenizer of its own."""

import shutil
import sys

import foreign_clips as foreign
import pytest
import torch

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip
from trainers.capt.backbone.tokenizers import TransformersTokenizer
from trainers.capt.bases.context import class_tokens, place_context
from trainers.capt.bases.learners import BaseSpec, build_base

pytest.importorskip("transformers", reason="the extra `test` brings transformers")
pytest.importorskip("open_clip", reason="the extra `test` brings open_clip")

from layouts import SIGLIPS  # noqa: E402


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


@pytest.mark.parametrize("layout", SIGLIPS)
def test_a_file_of_the_current_folder(made, layout, monkeypatch):
    """Its tokenizer lies there as well."""
    folder = made(layout).path
    monkeypatch.chdir(folder)
    (weights,) = folder.glob("*.safetensors")
    ids = PromptedCLIP(load_clip(weights.name)).tokenize(foreign.SENTENCES)
    assert torch.equal(ids, PromptedCLIP(load_clip(str(folder))).tokenize(foreign.SENTENCES))
