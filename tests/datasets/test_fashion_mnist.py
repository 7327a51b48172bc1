"""FashionMNIST: small idx files, the tool that unpacks them, and the loader on what it writes."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dassl.utils import read_image
from PIL import Image

from capt_tools import prepare_fashion_mnist as tool
from capt_tools.pretraining.sources import read_images
from datasets.fashion_mnist import FashionMNIST
from datasets.files import DataNotFoundError

NAMES = list(FashionMNIST.CLASS_NAMES)
TRAIN, VAL, PRETRAIN, REST, TEST = 5, 3, 4, 2, 6


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    with gzip.open(path, "wb") as file:
        file.write(header + array.astype(np.uint8).tobytes())


def write_source(folder):
    """Images of one grey each: 14 * label + place of the image among its class; +100 in the test set."""
    folder.mkdir(parents=True, exist_ok=True)
    per_class = {"train": TRAIN + VAL + PRETRAIN + REST, "t10k": TEST}
    for prefix, number in per_class.items():
        labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), number))
        place = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
        grey = 14 * labels + place + 100 * (prefix == "t10k")
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", np.broadcast_to(grey[:, None, None], (len(grey), 28, 28)))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    monkeypatch.setattr(tool, "OFFICIAL", {"train": TRAIN + VAL + PRETRAIN + REST, "test": TEST})
    monkeypatch.setattr(tool, "NUM_TRAIN", TRAIN)
    monkeypatch.setattr(tool, "NUM_VAL", VAL)


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "idx")


def prepare(source, out, pretrain=PRETRAIN):
    return tool.main([str(source), str(out), "--pretrain-per-class", str(pretrain)])


@pytest.fixture
def root(source, tmp_path):
    assert prepare(source, tmp_path / "data") == 0
    return tmp_path / "data"


def greys(items):
    """Grey of each image; what ``write_source`` painted."""
    return [int(np.asarray(Image.open(item.impath))[0, 0]) for item in items]


# ---- the tool -----------------------------------------------------------------------------------------------------


def test_each_part_gets_its_images(root, load):
    dataset = load("FashionMNIST", root)
    expected = {
        "train_x": [14 * label + place for label in range(10) for place in range(TRAIN)],
        "val": [14 * label + TRAIN + place for label in range(10) for place in range(VAL)],
        "test": [14 * label + 100 + place for label in range(10) for place in range(TEST)],
    }
    for part, values in expected.items():
        assert greys(getattr(dataset, part)) == values


def test_pretraining_images_are_no_others(root):
    pictures = read_images(str(root / "fashion_mnist_pretrain"), 28)
    assert list(pictures.names) == sorted((name,) for name in NAMES)
    found = sorted(pictures.images[:, 0, 0, 0].tolist())
    assert found == [14 * label + TRAIN + VAL + place for label in range(10) for place in range(PRETRAIN)]


def test_no_scratch_folder_stays_and_all_may_read(root):
    assert sorted(path.name for path in root.iterdir()) == ["fashion_mnist", "fashion_mnist_pretrain"]
    assert all(path.stat().st_mode & 0o755 == 0o755 for path in root.iterdir())


def test_split_file_has_coops_form(root):
    split = json.loads((root / "fashion_mnist" / "split_fashion_mnist.json").read_text())
    assert {part: len(items) for part, items in split.items()} == {"train": 50, "val": 30, "test": 60}
    path, label, name = split["test"][-1]
    assert (label, name) == (9, "ankle boot")
    assert path.startswith("ankle_boot/test_")


def test_again_keeps_what_is_there(root, source):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert prepare(source, root) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_uncompressed_files_do_as_well(root, source, tmp_path):
    for path in source.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert prepare(source, tmp_path / "other") == 0
    files = [{p.relative_to(r): p.read_bytes() for p in r.rglob("*.*g")} for r in (root, tmp_path / "other")]
    assert files[0] == files[1]


def test_a_broken_off_run_leaves_nothing(source, tmp_path, monkeypatch):
    def break_off(*_):
        raise OSError("disk full")

    monkeypatch.setattr(tool, "save_split", break_off)
    assert prepare(source, tmp_path / "data") == 1
    assert list((tmp_path / "data").iterdir()) == []


def test_missing_file(source, tmp_path, capsys):
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    assert prepare(source, tmp_path / "data") == 1
    assert f"no {source}/t10k-labels-idx1-ubyte.gz; docs/DATASETS.md, section" in capsys.readouterr().err


def test_cut_file(source, tmp_path, capsys):
    path = source / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert prepare(source, tmp_path / "data") == 1
    assert f"{path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"no idx file", b"", bytes([0, 0, 8, 3, 0, 0, 0, 2]) + bytes(30)])
def test_other_file(source, tmp_path, capsys, content):
    (source / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    assert prepare(source, tmp_path / "data") == 1
    assert f"{source}/train-* are no idx files" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_wrong_numbers(source, tmp_path, capsys, part):
    labels = source / f"{part}-labels-idx1-ubyte.gz"
    number = len(gzip.decompress(labels.read_bytes())) - 8
    write_idx(labels, np.zeros(number))
    assert prepare(source, tmp_path / "data") == 1
    assert f"{part}-* must hold {number // 10} images of each of 10 classes" in capsys.readouterr().err


def test_images_without_labels(source, tmp_path, capsys):
    write_idx(source / "t10k-images-idx3-ubyte.gz", np.zeros((7, 28, 28)))
    assert prepare(source, tmp_path / "data") == 1
    assert "got 7 images and labels in the numbers [6, 6," in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, PRETRAIN + REST + 1])
def test_too_many_to_pretrain_on(source, tmp_path, capsys, number):
    assert prepare(source, tmp_path / "data", number) == 1
    assert f"--pretrain-per-class must be from 1 to 6, got {number}" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_other_number_to_pretrain_on_than_is_there(root, source, capsys):
    assert prepare(source, root, PRETRAIN + 1) == 1
    assert "must hold classnames.txt and 50 images, got 40 of them and 0 others; delete it" in capsys.readouterr().err
    assert prepare(source, root, PRETRAIN - 1) == 1
    assert "30 images, got 30 of them and 10 others; delete it" in capsys.readouterr().err


def test_incomplete_data_set_is_refused(root, source, capsys):
    next((root / "fashion_mnist/images/coat").iterdir()).unlink()
    assert prepare(source, root) == 1
    assert "1 of 140 listed images are missing" in capsys.readouterr().err
    (root / "fashion_mnist/split_fashion_mnist.json").unlink()
    assert prepare(source, root) == 1
    assert f"{root}/fashion_mnist is incomplete" in capsys.readouterr().err


def test_other_split_is_refused(root, source, capsys):
    path = root / "fashion_mnist/split_fashion_mnist.json"
    split = json.loads(path.read_text())
    split["val"], split["train"] = split["train"], split["val"]
    path.write_text(json.dumps(split))
    assert prepare(source, root) == 1
    assert f"{path} is not the split that this makes (train differs)" in capsys.readouterr().err


# ---- the loader ---------------------------------------------------------------------------------------------------


def test_classes_in_official_order(root, load):
    dataset = load("FashionMNIST", root)
    assert dataset.classnames == NAMES
    assert NAMES[0] == "t-shirt"
    assert NAMES[9] == "ankle boot"
    assert Counter(item.label for item in dataset.test) == dict.fromkeys(range(10), TEST)


@pytest.mark.parametrize(("half", "names"), [("base", NAMES[:5]), ("new", NAMES[5:])])
def test_halves(root, load, half, names):
    dataset = load("FashionMNIST", root, num_shots=2, subsample=half)
    assert dataset.classnames == names
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [5 * 2, 5 * 2, 5 * TEST]
    assert {item.classname for item in dataset.test} == set(names)


def test_grey_pictures_come_as_rgb(root, load):
    item = load("FashionMNIST", root).val[0]
    assert Image.open(item.impath).mode == "L"
    image = read_image(item.impath)
    assert (image.mode, image.size) == ("RGB", (28, 28))


def test_without_split_file(root, load):
    Path(root, "fashion_mnist/split_fashion_mnist.json").unlink()
    with pytest.raises(DataNotFoundError, match=r"no .*split_fashion_mnist.json; run scripts/prepare_fashion_mnist.py"):
        load("FashionMNIST", root)


def test_without_folder(tmp_path, load):
    with pytest.raises(DataNotFoundError, match="docs/DATASETS.md, section FashionMNIST"):
        load("FashionMNIST", tmp_path)
