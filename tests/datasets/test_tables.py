"""Every data set has its YAML, its template, its published counts and its section in docs/DATASETS.md."""

import re
from pathlib import Path

import pytest
import yaml
from dassl.data.datasets import DATASET_REGISTRY

from capt_tools.check_data import PUBLISHED
from trainers.capt.bases.templates import CUSTOM_TEMPLATES, IMAGENET_TEMPLATES_SELECT

ROOT = Path(__file__).parents[2]
YAML_NAMES = {
    "imagenet": "ImageNet",
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordPets",
    "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "sun397": "SUN397",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "ucf101": "UCF101",
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNetSketch",
    "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR",
    "fashion_mnist": "FashionMNIST",
}


@pytest.mark.parametrize("name", YAML_NAMES)
def test_yaml_names_its_data_set(name):
    content = yaml.safe_load((ROOT / f"configs/datasets/{name}.yaml").read_text())
    assert content == {"DATASET": {"NAME": YAML_NAMES[name]}}
    assert YAML_NAMES[name] in DATASET_REGISTRY.registered_names()


def test_no_yaml_without_a_data_set():
    for path in (ROOT / "configs/datasets").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["DATASET"]["NAME"] in DATASET_REGISTRY.registered_names()


def test_tables_name_the_same_data_sets():
    assert set(PUBLISHED) == set(YAML_NAMES.values())
    assert set(CUSTOM_TEMPLATES) == {*PUBLISHED, "Glyphs"}


def test_templates_take_one_name():
    assert all(template.count("{}") == 1 for template in [*CUSTOM_TEMPLATES.values(), *IMAGENET_TEMPLATES_SELECT])
    assert len(IMAGENET_TEMPLATES_SELECT) == 7
    assert CUSTOM_TEMPLATES["DescribableTextures"].format("banded") == "banded texture."


def test_docs_have_a_section_a_data_set_with_its_counts():
    text = (ROOT / "docs/DATASETS.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for name, (_, *counts) in PUBLISHED.items():
        assert name in sections
        for count in counts:
            assert count is None or f"{count:,}" in sections[name], (name, count)
