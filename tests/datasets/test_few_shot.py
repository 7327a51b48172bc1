"""Few-shot draws: Dassl's random sequence, CoOp's sample, what happens around the cache."""

import hashlib
import json
import os
import pickle
import random
import re
import stat
from pathlib import Path

import pytest
import trees
from dassl.data.datasets import DatasetBase

from datasets.few_shot import describe_sample
from datasets.splits import make_datum

GOLDEN = Path(__file__).parent.parent / "golden"
SHARED = Path(__file__).parents[2] / "../shared/data"

SIZES_A = [30, 10, 3, 100], [6, 2, 5, 20]
SIZES_B = [30, 20, 50], [6, 6, 6]
# (random.seed, (train sizes, val sizes), shots, train positions, val positions), from the original Dassl.
VECTORS = [
    (
        1,
        SIZES_A,
        4,
        "4 18 27 25 31 34 39 33 40 41 42 140 100 103 126",
        "3 1 0 4 6 7 8 11 9 12 27 21 20 16",
    ),
    (2, SIZES_A, 4, "27 1 2 11 32 34 38 37 40 41 42 70 120 47 117", "5 1 3 2 6 7 11 10 12 9 29 21 14 13"),
    (3, SIZES_A, 4, "7 18 17 4 35 37 31 34 40 41 42 44 103 76 113", "1 5 3 2 6 7 12 11 9 8 20 17 29 25"),
    (
        1,
        SIZES_B,
        16,
        "4 18 27 25 24 2 8 3 15 14 21 12 6 22 19 0 42 43 30 44 38 41 49 33 39 31 35 47 45 37 46 34 "
        "50 74 93 63 77 51 83 64 78 81 85 92 72 88 86 79",
        "2 0 3 5 11 6 7 8 17 14 12 16",
    ),
    (1, SIZES_B, 1, "4 48 98", "0 8 12"),
]


def numbered(sizes, labels=None):
    """Items named 0, 1, 2, ..., label by label."""
    labels = labels or range(len(sizes))
    classes = [label for label, size in zip(labels, sizes, strict=True) for _ in range(size)]
    return [make_datum(str(i), label, f"class {label}") for i, label in enumerate(classes)]


def positions(items):
    return [int(item.impath) for item in items]


@pytest.mark.regression
@pytest.mark.parametrize(("seed", "sizes", "shots", "train", "val"), VECTORS)
def test_golden_vectors(seed, sizes, shots, train, val):
    dataset = DatasetBase(train_x=numbered([1]))
    random.seed(seed)
    drawn_train = dataset.generate_fewshot_dataset(numbered(sizes[0]), num_shots=shots)
    drawn_val = dataset.generate_fewshot_dataset(numbered(sizes[1]), num_shots=min(shots, 4))
    assert positions(drawn_train) == [int(i) for i in train.split()]
    assert positions(drawn_val) == [int(i) for i in val.split()]


@pytest.mark.regression
def test_golden_vectors_special_cases():
    dataset = DatasetBase(train_x=numbered([1]))
    random.seed(1)
    two = dataset.generate_fewshot_dataset(numbered([5, 5]), numbered([5, 5]), num_shots=2)
    assert [positions(part) for part in two] == [[1, 0, 7, 5], [3, 4, 8, 9]]
    random.seed(1)
    items = numbered([5, 5])
    late = dataset.generate_fewshot_dataset(items[5:] + items[:5], num_shots=2)
    assert positions(late) == [6, 5, 2, 0]
    random.seed(1)
    repeated = dataset.generate_fewshot_dataset(numbered([3, 10]), num_shots=5, repeat=True)
    assert positions(repeated) == [0, 2, 2, 0, 1, 10, 12, 9, 11, 4]


@pytest.mark.regression
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sample_is_that_of_coop(seed, load, tmp_path):
    """The 16 shots of seeds 1 2 3 that CoOp's own code (with the original Dassl) draws from the published split."""
    source = SHARED / "caltech-101"
    if not source.is_dir():
        pytest.skip("../shared/data/caltech-101 is not here")
    golden = json.loads((GOLDEN / "caltech101_16shot.json").read_text())
    split_file = source / "split_zhou_Caltech101.json"
    assert hashlib.sha256(split_file.read_bytes()).hexdigest() == golden["split_file_sha256"]
    folder = tmp_path / "caltech-101"
    folder.mkdir()
    (folder / "101_ObjectCategories").symlink_to((source / "101_ObjectCategories").resolve())
    (folder / split_file.name).write_bytes(split_file.read_bytes())

    dataset = load("Caltech101", tmp_path, num_shots=16, seed=seed)
    split = json.loads(split_file.read_text())
    for part, items in (("train", dataset.train_x), ("val", dataset.val)):
        expected = [split[part][i] for i in golden["seeds"][str(seed)][part]]
        drawn = [[os.path.relpath(item.impath, dataset.image_dir), item.label, item.classname] for item in items]
        assert drawn == expected
    assert len(dataset.train_x) == 1600
    assert len(dataset.test) == 2465


def keys(items):
    return [(item.impath, item.label, item.classname) for item in items]


@pytest.fixture
def with_split(caltech, load):
    """The small Caltech101 with its split file saved."""
    load("Caltech101", caltech)
    return caltech


def cache_of(root, shots, seed):
    return root / f"caltech-101/split_fewshot/shot_{shots}-seed_{seed}.pkl"


def test_second_run_reads_the_cache_whatever_the_random_state(with_split, load, capsys):
    first = load("Caltech101", with_split, num_shots=2)
    path = cache_of(with_split, 2, 1)
    assert f"Saving preprocessed few-shot data to {path}\n" in capsys.readouterr().out
    path.rename(cache_of(with_split, 2, 9))
    second = load("Caltech101", with_split, num_shots=2, seed=9)
    output = capsys.readouterr().out
    assert "Loading preprocessed few-shot data from" in output
    assert "Creating a" not in output
    assert keys(first.train_x) == keys(second.train_x)
    assert keys(first.val) == keys(second.val)


def test_base_and_new_share_one_pickle_with_all_classes(with_split, load):
    load("Caltech101", with_split, num_shots=1, subsample="base")
    before = cache_of(with_split, 1, 1).read_bytes()
    data = pickle.loads(before)
    assert list(data) == ["train", "val"]
    assert sorted({item.label for item in data["train"]}) == [0, 1, 2, 3, 4]
    load("Caltech101", with_split, num_shots=1, subsample="new")
    assert cache_of(with_split, 1, 1).read_bytes() == before


def test_val_gets_at_most_four_a_class(tmp_path, load):
    trees.put_class_folders(tmp_path / "dtd/images", ["banded", "dotted"], num=40)
    dataset = load("DescribableTextures", tmp_path, num_shots=16)
    assert (len(dataset.train_x), len(dataset.val)) == (32, 8)


def test_more_shots_than_images_takes_classes_whole_and_counts_them(with_split, load, capsys):
    dataset = load("Caltech101", with_split, num_shots=6)
    assert len(dataset.train_x) == 25
    assert "5 of 5 classes have fewer than 6 training images and are taken whole" in capsys.readouterr().out


def test_no_shots_means_all_images_and_no_cache(with_split, load):
    assert len(load("Caltech101", with_split, num_shots=-1).train_x) == 25
    assert not (with_split / "caltech-101/split_fewshot").exists()


def test_folder_marked_read_only_is_left_alone(with_split, load, capsys):
    """Also for root, whom permission bits do not stop."""
    expected = load("Caltech101", with_split, num_shots=2)
    folder = with_split / "caltech-101"
    cache_of(with_split, 2, 1).unlink()
    (folder / "split_fewshot").rmdir()
    capsys.readouterr()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        dataset = load("Caltech101", with_split, num_shots=2)
        content = sorted(path.name for path in folder.iterdir())
    finally:
        folder.chmod(stat.S_IRWXU)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Cannot write")]
    assert lines == [
        f"Cannot write {cache_of(with_split, 2, 1)} (the folder is marked read-only); going on without this cache"
    ]
    assert content == ["101_ObjectCategories", "split_zhou_Caltech101.json"]
    assert keys(dataset.train_x) == keys(expected.train_x)
    assert keys(dataset.val) == keys(expected.val)


def test_split_that_cannot_be_saved_is_used_all_the_same(caltech, load, capsys):
    folder = caltech / "caltech-101"
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        dataset = load("Caltech101", caltech)
    finally:
        folder.chmod(stat.S_IRWXU)
    assert len(dataset.train_x) == 25
    assert "the same split is made again next time" in capsys.readouterr().out
    assert not (folder / "split_zhou_Caltech101.json").exists()


def test_write_error_leaves_no_half_file(with_split, load, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    load("Caltech101", with_split, num_shots=2)
    assert "(No space left on device); going on without this cache" in capsys.readouterr().out
    assert list((with_split / "caltech-101/split_fewshot").iterdir()) == []


# Stale caches: what was changed in the pickled sample, and the reason that must be printed.
def _other_class(data):
    data["train"][0]._classname = "visage"


def _other_label(data):
    data["val"][0]._label = 3


def _gone(data):
    data["train"][0]._impath = data["train"][0]._impath.replace("image_", "picture_")


def _fewer(data):
    data["train"].pop()


def _class_lost(data):
    data["train"][:] = [item for item in data["train"] if item.label != 4]


def _twice(data):
    data["train"][0] = data["train"][1]


def _no_val(data):
    del data["val"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_other_class, r"image_\d+.jpg has label 0 \(visage\), now 0 \(face\)"),
        (_other_label, r"has label 3 \(face\), now 0 \(face\)"),
        (_gone, "picture_.* is not among the train images under"),
        (_fewer, "its train images are not 2 of each of the 5 classes"),
        (_class_lost, "its train images are not 2 of each of the 5 classes"),
        (_twice, "a train image occurs twice"),
        (_no_val, "it holds no val images"),
    ],
)
def test_stale_cache_is_named_and_replaced(spoil, reason, with_split, load, capsys):
    expected = load("Caltech101", with_split, num_shots=2)
    path = cache_of(with_split, 2, 1)
    sound = path.read_bytes()
    data = pickle.loads(sound)
    spoil(data)
    path.write_bytes(pickle.dumps(data))
    capsys.readouterr()
    dataset = load("Caltech101", with_split, num_shots=2)
    output = capsys.readouterr().out
    assert re.search(f"Not using it, sampling again: .*{reason}", output)
    assert keys(dataset.train_x) == keys(expected.train_x)
    assert path.read_bytes() == sound


def test_image_of_the_test_split_is_never_accepted_as_a_shot(with_split, load, capsys):
    dataset = load("Caltech101", with_split, num_shots=2)
    path = cache_of(with_split, 2, 1)
    data = pickle.loads(path.read_bytes())
    data["train"][0] = next(item for item in dataset.test if item.label == 0)
    path.write_bytes(pickle.dumps(data))
    again = load("Caltech101", with_split, num_shots=2)
    assert "is not among the train images" in capsys.readouterr().out
    assert keys(again.train_x) == keys(dataset.train_x)


def test_sample_survives_a_move_of_the_data(with_split, load, tmp_path_factory, capsys):
    first = load("Caltech101", with_split, num_shots=2)
    root = tmp_path_factory.mktemp("moved")
    (with_split / "caltech-101").rename(root / "caltech-101")
    cache_of(root, 2, 1).rename(cache_of(root, 2, 9))
    capsys.readouterr()
    moved = load("Caltech101", root, num_shots=2, seed=9)
    assert "Creating a" not in capsys.readouterr().out
    assert [item.impath.replace(str(root), str(with_split)) for item in moved.train_x] == [
        item.impath for item in first.train_x
    ]


def test_imagenet_pickles_train_only(tmp_path, load):
    trees.BUILDERS["ImageNet"](tmp_path)
    dataset = load("ImageNet", tmp_path, num_shots=2)
    data = pickle.loads((tmp_path / "imagenet/split_fewshot/shot_2-seed_1.pkl").read_bytes())
    assert list(data) == ["train"]
    assert len(dataset.train_x) == 8
    assert len(dataset.val) == 12


def test_describe_sample(with_split, load):
    dataset = load("Caltech101", with_split, num_shots=2, subsample="new")
    described = describe_sample(dataset, str(with_split))
    assert list(described) == ["train", "val"]
    assert list(described["train"]) == ["accordion", "airplane"]
    assert described["train"]["airplane"] == [
        os.path.relpath(item.impath, with_split) for item in dataset.train_x if item.label == 1
    ]
    assert described["train"]["airplane"][0].startswith("caltech-101/101_ObjectCategories/airplanes/image_")
    assert json.loads(json.dumps(described)) == described


def test_describe_sample_leaves_out_test_images(tmp_path, load):
    trees.BUILDERS["ImageNet"](tmp_path)
    dataset = load("ImageNet", tmp_path, num_shots=2)
    assert list(describe_sample(dataset, str(tmp_path))) == ["train"]
