"""Split files, base and new halves, and how splits are made."""

import json
import os
import random
from pathlib import Path

import pytest
import trees
from dassl.data.datasets import Datum

from datasets.dtd import DescribableTextures
from datasets.imagenet import ImageNet
from datasets.oxford_pets import OxfordPets
from datasets.splits import load_split, make_datum, read_split, split_trainval, subsample_classes

SPLITS = Path(__file__).parents[2] / "../shared/data/splits"

# classes, train, val, test
PUBLISHED = {
    "Caltech101": (100, 4128, 1649, 2465),
    "OxfordPets": (37, 2944, 736, 3669),
    "StanfordCars": (196, 6509, 1635, 8041),
    "OxfordFlowers": (102, 4093, 1633, 2463),
    "DescribableTextures": (47, 2820, 1128, 1692),
    "EuroSAT": (10, 13500, 5400, 8100),
    "UCF101": (101, 7639, 1898, 3783),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_split_files(name):
    path = SPLITS / f"split_zhou_{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not in ../shared/data/splits")
    num_classes, *sizes = PUBLISHED[name]
    train, val, test = load_split(str(path), "images")
    assert [len(train), len(val), len(test)] == sizes
    assert sorted({item.label for item in train}) == list(range(num_classes))
    assert len({item.impath for item in [*train, *val, *test]}) == sum(sizes)

    num_base = (num_classes + 1) // 2
    for half, first, num in (("base", 0, num_base), ("new", num_base, num_classes - num_base)):
        parts = subsample_classes(train, val, test, subsample=half)
        for part, whole in zip(parts, (train, val, test), strict=True):
            names = {item.label: item.classname for item in part}
            assert names == {item.label - first: item.classname for item in whole if first <= item.label < first + num}
            assert sorted(names) == list(range(num))


def items(labels):
    return [make_datum(f"{i}.jpg", label, f"class {label}") for i, label in enumerate(labels)]


def test_halves_worked_by_hand():
    """Labels 0 2 5 of train: base = {0, 2} -> 0 1, new = {5} -> 0; label 3 of test is in neither."""
    train, test = items([5, 0, 2, 0]), items([2, 3, 5])
    base = subsample_classes(train, test, subsample="base")
    assert [[(i.impath, i.label) for i in part] for part in base] == [
        [("1.jpg", 0), ("2.jpg", 1), ("3.jpg", 0)],
        [("0.jpg", 1)],
    ]
    new = subsample_classes(train, test, subsample="new")
    assert [[(i.impath, i.label, i.classname) for i in part] for part in new] == [
        [("0.jpg", 0, "class 5")],
        [("2.jpg", 0, "class 5")],
    ]


def test_all_classes_are_left_as_they_are():
    train, test = items([0, 1]), items([1])
    assert subsample_classes(train, test, subsample="all") == (train, test)


def test_unknown_half():
    with pytest.raises(ValueError, match="DATASET.SUBSAMPLE_CLASSES must be all, base or new, got 'novel'"):
        subsample_classes(items([0]), subsample="novel")


@pytest.mark.regression
def test_split_trainval_golden():
    """From CoOp's code: random.seed(1), classes of 5, 7 and 12 images."""
    random.seed(1)
    train, val = split_trainval(items([0] * 5 + [1] * 7 + [2] * 12))
    expected = "3 4 0 1 7 5 9 10 11 8 16 13 14 15 17 22 21 18 12 19"
    assert [item.impath for item in train] == [f"{i}.jpg" for i in expected.split()]
    assert [item.impath for item in val] == [f"{i}.jpg" for i in (2, 6, 20, 23)]


def test_split_trainval_needs_a_validation_image():
    with pytest.raises(ValueError, match="class 'class 0' must have enough images .* got 2"):
        split_trainval(items([0, 0]))


def test_folder_with_too_few_images(tmp_path, load):
    trees.put_class_folders(tmp_path / "dtd/images", ["banded"], num=2)
    with pytest.raises(ValueError, match="class 'banded' must have enough images for train, val and test, got 2"):
        load("DescribableTextures", tmp_path)


def test_names_that_coop_code_calls(tmp_path):
    """Other repositories' data sets are written on these."""
    trees.put_class_folders(tmp_path / "images", ["b", "a", "skipped"])
    random.seed(0)
    parts = DescribableTextures.read_and_split_data(
        str(tmp_path / "images"), ignored=["skipped"], new_cnames={"a": "apple"}
    )
    path = str(tmp_path / "split.json")
    OxfordPets.save_split(*parts, path, str(tmp_path / "images"))
    read = OxfordPets.read_split(path, str(tmp_path / "images"))
    assert [[vars(item) for item in part] for part in read] == [[vars(item) for item in part] for part in parts]
    assert {(item.label, item.classname) for item in read[0]} == {(0, "apple"), (1, "b")}
    assert len(OxfordPets.subsample_classes(*read, subsample="base")) == 3
    assert OxfordPets.split_trainval(read[0])
    assert ImageNet.read_classnames


def test_split_file_has_the_form_of_coop(tmp_path):
    path = tmp_path / "split.json"
    OxfordPets.save_split([make_datum("/d/a/x.jpg", 0, "a")], [], [], str(path), "/d")
    expected = {"train": [["a/x.jpg", 0, "a"]], "val": [], "test": []}
    assert path.read_text() == json.dumps(expected, indent=4, separators=(",", ": "))


@pytest.mark.parametrize("content", ["", "{}", '{"train": [["a.jpg", 0]], "val": [], "test": []}', "[1]"])
def test_no_split_file(content, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="split.json is not a split file"):
        load_split(str(path), "")


def test_read_split_names_missing_images(tmp_path):
    path = tmp_path / "split.json"
    OxfordPets.save_split([make_datum("/d/a/x.jpg", 0, "a")], [], [], str(path), "/d")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 listed images are missing under .*, e\.g\. a/x\.jpg"):
        read_split(str(path), str(tmp_path))


def test_make_datum_equals_a_checked_one(tmp_path):
    path = tmp_path / "x.jpg"
    path.touch()
    checked, ours = Datum(str(path), 3, classname="c"), make_datum(str(path), 3, "c")
    assert vars(checked) == vars(ours)
    assert os.path.isfile(ours.impath)
