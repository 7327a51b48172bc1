"""The shipped pair prompts: classes that exist, every side there, nothing that CLIP would cut."""

import json
import re
from pathlib import Path

import compat  # noqa: F401

import pytest

from datasets.fashion_mnist import FashionMNIST
from datasets.glyph_files import CLASS_NAMES
from datasets.glyph_shapes import LOOK_ALIKES
from trainers.capt.backbone.stock_clip import tokenizer
from trainers.capt.bank.prompt_library import PromptLibrary

FOLDER = Path(__file__).resolve().parents[2] / "descriptions"
SPLITS = {
    "caltech101": "split_zhou_Caltech101.json",
    "oxfordpets": "split_zhou_OxfordPets.json",
    "describabletextures": "split_zhou_DescribableTextures.json",
    "eurosat": "split_zhou_EuroSAT.json",
}
# Sets whose names need no split file.
NAMES = {"fashionmnist": FashionMNIST.CLASS_NAMES, "glyphs": CLASS_NAMES}
FILES = [*SPLITS, *NAMES]


def read(name):
    return json.loads((FOLDER / f"{name}_pairs.json").read_text())


def unknown(name, classnames):
    return {n for key in read(name) for n in key.split("||")} - set(classnames)


@pytest.mark.parametrize("name", FILES)
def test_sentences_fit_and_are_found_in_both_orders(name):
    library = PromptLibrary(FOLDER, name)
    seen = set()
    for key, entry in read(name).items():
        a, b = key.split("||")
        assert a != b
        assert frozenset((a, b)) not in seen
        seen.add(frozenset((a, b)))
        for side in ("commonality", "difference_a", "difference_b"):
            assert entry[side]
            assert all(len(tokenizer.encode(text)) <= 75 for text in entry[side])
        assert library.prompts(a, b).difference == tuple(entry["difference_a"])
        assert library.prompts(b, a).difference == tuple(entry["difference_b"])


def test_the_readme_counts_them():
    counts = {
        m[0]: int(m[1]) for m in re.findall(r"\| `(\w+)_pairs.json` .*\| (\d+) \|", (FOLDER / "README.md").read_text())
    }
    assert counts == {name: len(read(name)) for name in FILES}
    assert sum(counts.values()) >= 60


@pytest.mark.parametrize("name", SPLITS)
def test_names_are_those_of_the_data_set(name, shared_data):
    split = json.loads(next(shared_data.rglob(SPLITS[name])).read_text())
    assert not unknown(name, {item[2] for part in split.values() for item in part})


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_loader(name):
    assert not unknown(name, NAMES[name])


def test_the_demo_has_the_planted_pairs():
    assert list(read("glyphs")) == ["||".join(pair) for pair in LOOK_ALIKES]
