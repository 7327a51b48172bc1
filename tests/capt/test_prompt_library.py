"""Where the sentences of a pair come from, and what is made of them."""

import io
import json
import random
import sys

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from trainers.capt.bank import prompt_library
from trainers.capt.bank.prompt_library import PairPrompts, PromptLibrary, encode_pairs

FUDD = {"0": {"classes": [1, 0], "prompt_pairs": [{"prompt_pair": ["otter, wet", "red fox, dry"]}]}}


@pytest.fixture
def write(tmp_path):
    def write(kind, content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / f"Pets_{kind}.json").write_text(text)

    return write


def library(folder, classnames=("red_fox", "otter", "cup")):
    return PromptLibrary(folder, "pets", classnames)


def test_templates_need_no_file(tmp_path):
    found = library(tmp_path / "nothing").prompts("red_fox", "otter")
    assert found.difference[0] == "a photo of a red fox, not a otter."
    assert found.sources == ("template", "template")
    assert found.commonality == library(tmp_path).prompts("otter", "red_fox").commonality  # symmetric


def test_first_source_that_knows_the_pair_wins(tmp_path, write):
    write("prompt_pairs", FUDD)
    assert library(tmp_path).prompts("red_fox", "otter").difference == ("red fox, dry",)
    assert library(tmp_path).prompts("otter", "red_fox").difference == ("otter, wet",)
    write("prompt_distinct", {"red_fox": ["a bushy tail"]})
    write("prompt_common", {"red_fox": ["four legs"], "otter": ["fur"]})
    found = library(tmp_path).prompts("red_fox", "otter")
    assert (found.difference, found.sources) == (("a bushy tail",), ("class-wise file", "class-wise file"))
    assert found.commonality == ("fur", "four legs")
    write("pairs", {"red fox||otter": {"commonality": ["wild"], "difference_a": ["land"], "difference_b": ["water"]}})
    here = library(tmp_path)
    assert here.prompts("red_fox", "otter").difference == ("land",)
    assert here.prompts("otter", "red_fox").difference == ("water",)
    assert here.prompts("otter", "red_fox").commonality == ("wild",)
    assert here.prompts("cup", "otter").sources == ("template", "class-wise file")
    assert len(here.files) == 4


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("pairs", "{", "is no JSON"),
        ("pairs", [1], "must map names to dicts"),
        ("prompt_common", {"otter": "fur"}, "must map names to lists"),
        ("pairs", {"red fox, otter": {}}, 'has another form than expected .*"a||b"'),
        ("pairs", {"a||b": {"commonality": "wild"}}, "'wild' is no list of sentences"),
        ("prompt_distinct", {"otter": [3]}, "is no list of sentences"),
        ("prompt_pairs", {"0": {"classes": [1, 9], "prompt_pairs": []}}, "counts class 9, the data set has 3 classes"),
        ("prompt_pairs", {"0": {}}, "has another form than expected"),
    ],
)
def test_bad_files_are_named(tmp_path, write, kind, content, message):
    write(kind, content)
    with pytest.raises(ValueError, match=message) as caught:
        library(tmp_path)
    assert f"Pets_{kind}.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_are_means_of_sentences(tmp_path, write):
    write("pairs", {"cup||otter": {"difference_a": ["x", "y"], "difference_b": ["y"], "commonality": ["z"]}})
    axes = {"x": [1.0, 0, 0], "y": [0, 1, 0], "z": [0, 0, 1]}
    calls = []

    def text_features(sentences):
        calls.append(list(sentences))
        return torch.tensor([axes[s] for s in sentences])

    pairs = [("cup", "otter"), ("otter", "cup")]
    difference, commonality, sources = encode_pairs(library(tmp_path), pairs, text_features)
    torch.testing.assert_close(difference[0], normalize(torch.tensor([1.0, 1, 0]), dim=0))
    assert difference[1].tolist() == [0, 1, 0]
    assert commonality[0].tolist() == commonality[1].tolist() == [0, 0, 1]
    assert len(calls) == 1
    assert sorted(calls[0]) == ["x", "y", "z"]  # each sentence once
    assert sources == {"difference: pairs file": 2, "commonality: pairs file": 2}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 7))
def test_features_against_a_loop(seed, num_pairs, at_a_time):
    """Class-wise sentences belong to many pairs; they are encoded a few at a time, each once."""
    draw = random.Random(seed)
    names, words = list("abcde"), [f"s{i}" for i in range(12)]
    sides = {(t, j): [draw.choices(words, k=draw.randint(1, 3)) for _ in range(2)] for t in names for j in names}
    table = dict(zip(words, tiny_capt.unit(12, 8, seed=seed), strict=True))
    calls = []

    class Drawn:
        def prompts(self, t, j):
            return PairPrompts(*map(tuple, sides[t, j]), ("drawn", "drawn"))

    def text_features(sentences):
        calls.extend(sentences)
        assert len(sentences) <= at_a_time
        return torch.stack([table[s] for s in sentences])

    pairs = [tuple(draw.sample(names, 2)) for _ in range(num_pairs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_library, "SENTENCES_AT_A_TIME", at_a_time)
        patch.setattr(prompt_library, "ADDED_AT_A_TIME", 2)
        difference, commonality, sources = encode_pairs(Drawn(), pairs, text_features)
    assert len(calls) == len(set(calls))
    for i, pair in enumerate(pairs):
        for found, own in zip((difference[i], commonality[i]), sides[pair], strict=True):
            expected = normalize(sum(table[s].double() for s in own), dim=-1)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert sources == {"difference: drawn": num_pairs, "commonality: drawn": num_pairs}


def test_digest_follows_the_sentences(tmp_path, write):
    without = library(tmp_path).digest()
    write("pairs", {"cup||otter": {"difference_a": ["x"]}})
    first = library(tmp_path).digest()
    assert first == library(tmp_path).digest()
    write("pairs", {"cup||otter": {"difference_a": ["y"]}})
    assert len({without, first, library(tmp_path).digest()}) == 3


@pytest.mark.parametrize(("is_terminal", "title"), [(True, "Encoding pair prompts"), (True, None), (False, "a title")])
def test_a_bar_shows_how_far_a_long_fill_is(monkeypatch, is_terminal, title):
    """On a terminal, and of what is filled ahead alone; a step's few pairs pass without."""
    screen = io.StringIO()
    screen.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(prompt_library, "SENTENCES_AT_A_TIME", 2)
    library = PromptLibrary("no folder", "none")
    encode_pairs(library, [("cup", "jug"), ("jug", "cup"), ("cup", "otter")], lambda s: torch.ones(len(s), 4), title)
    shown = screen.getvalue()
    assert (title is not None and f"{title}: 100%" in shown) == (is_terminal and title is not None)
    assert bool(shown) == (is_terminal and title is not None)
