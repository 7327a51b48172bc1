"""Folder: a user's own images, as they come."""

import json

import pytest
import trees

from trainers.capt.bases.templates import CUSTOM_TEMPLATES

SIZES = {"red fox": 10, "teapot": 20, "Kite": 3}


@pytest.fixture
def own(tmp_path):
    """Three classes, one of three images; two damaged images, a text file, a hidden folder and an empty class."""
    for name, size in SIZES.items():
        trees.put_images(tmp_path / name, [f"{i:03d}.jpg" for i in range(size)])
    (tmp_path / "teapot" / "999.jpg").write_bytes(trees.JPEG[: len(trees.JPEG) // 2])
    (tmp_path / "red fox" / "fake.png").write_text("no image")
    (tmp_path / "teapot" / "notes.txt").write_text("about")
    trees.put_images(tmp_path / ".thumbnails", ["a.jpg"])
    (tmp_path / "empty").mkdir()
    return tmp_path


def names_of(items):
    return sorted({(item.label, item.classname) for item in items})


def paths_of(dataset):
    return [[item.impath for item in part] for part in (dataset.train_x, dataset.val, dataset.test)]


def test_split_is_made_said_and_kept(own, load, capsys):
    dataset = load("Folder", own)
    log = capsys.readouterr().out
    assert dataset.classnames == ["Kite", "red fox", "teapot"]
    assert [len(part) for part in paths_of(dataset)] == [1 + 5 + 10, 1 + 2 + 4, 1 + 3 + 6]
    train, val, test = map(set, paths_of(dataset))
    assert not train & val
    assert not train & test
    assert not val & test
    assert "Left out, cannot be read: teapot/999.jpg" in log
    assert "Left out, cannot be read: red fox/fake.png" in log
    assert "Left out, no readable image: empty" in log
    assert "1 files are no images and are left out" in log
    assert (
        f"Split 50/20/30 of each class, seed 1: 16 train, 7 val, 10 test images; kept in {own}/.capt/split.json" in log
    )

    again = load("Folder", own, seed=2)
    assert paths_of(again) == paths_of(dataset)
    log = capsys.readouterr().out
    assert f"Reading split from {own}/.capt/split.json" in log
    assert "2 images that cannot be read are left out, e.g." in log


def test_the_split_does_not_depend_on_the_global_seed(own, load):
    first = paths_of(load("Folder", own, seed=1))
    (own / ".capt" / "split.json").unlink()
    assert paths_of(load("Folder", own, seed=5)) == first


def test_small_class_is_taken_whole_and_counted(own, load, capsys):
    dataset = load("Folder", own, num_shots=4)
    assert [sum(item.label == label for item in dataset.train_x) for label in range(3)] == [1, 4, 4]
    assert "1 of 3 classes have fewer than 4 training images and are taken whole" in capsys.readouterr().out
    again = load("Folder", own, num_shots=4)
    assert paths_of(again) == paths_of(dataset)
    assert (own / ".capt/split_fewshot/shot_4-seed_1.pkl").is_file()


def test_new_and_lost_images(own, load, capsys):
    first = load("Folder", own)
    trees.put_images(own / "teapot", ["new.jpg"])
    capsys.readouterr()
    assert paths_of(load("Folder", own)) == paths_of(first)
    assert "1 images came after the split and are left out, e.g. teapot/new.jpg" in capsys.readouterr().out
    (own / "teapot" / "003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 33 listed images are missing .* e.g. teapot/003.jpg; .*\.capt"):
        load("Folder", own)


def test_class_names_and_template(own, load):
    (own / "classnames.json").write_text(json.dumps({"Kite": "toy kite"}))
    (own / "template.txt").write_text("a drawing of a {}.\n")
    dataset = load("Folder", own)
    assert names_of(dataset.test) == [(0, "toy kite"), (1, "red fox"), (2, "teapot")]
    assert CUSTOM_TEMPLATES["Folder"] == "a drawing of a {}."
    (own / "classnames.json").write_text(json.dumps({"Kite": "paper kite"}))
    (own / "template.txt").unlink()
    assert load("Folder", own).classnames[0] == "paper kite"  # names are no part of the split
    assert "Folder" not in CUSTOM_TEMPLATES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classnames.json", "[1", "classnames.json is no JSON"),
        ("classnames.json", '{"Kite": 3}', "must hold .*a name being one text"),
        ("classnames.json", '{"kite": "x"}', "names 'kite', which is no class folder; the folders are"),
        ("template.txt", "a photo", "must hold one line with one"),
    ],
)
def test_wrong_optional_files(own, load, name, content, message):
    (own / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load("Folder", own)


def test_equal_names_are_warned_of(own, load, capsys):
    (own / "classnames.json").write_text(json.dumps({"Kite": "red_fox"}))
    load("Folder", own)
    assert "Warning: Kite, red fox are all called 'red fox'" in capsys.readouterr().out


def test_base_and_new_classes(own, load):
    assert load("Folder", own, subsample="base").classnames == ["Kite", "red fox"]
    assert load("Folder", own, subsample="new").classnames == ["teapot"]


def put_parts(root, **parts):
    for part, sizes in parts.items():
        for name, size in sizes.items():
            trees.put_images(root / part / name, [f"{part}{i}.jpg" for i in range(size)])


def test_train_val_test_trees(tmp_path, load, capsys):
    put_parts(tmp_path, train={"b": 4, "a": 3}, valid={"a": 2}, test={"a": 1, "b": 2})
    dataset = load("Folder", tmp_path)
    assert dataset.classnames == ["a", "b"]
    assert [len(part) for part in paths_of(dataset)] == [7, 2, 3]
    assert all(
        f"/{part}/" in path
        for part, paths in zip(("train", "valid", "test"), paths_of(dataset), strict=True)
        for path in paths
    )
    assert "Split as your folders have it: 7 train, 2 val, 3 test images" in capsys.readouterr().out


def test_val_tree_serves_as_test(tmp_path, load, capsys):
    put_parts(tmp_path, train={"b": 4, "a": 3}, val={"a": 2, "b": 1})
    dataset = load("Folder", tmp_path, num_shots=2)
    assert dataset.val == dataset.test
    assert len(dataset.test) == 3
    assert "the 3 images of val/ are the test images" in capsys.readouterr().out
    assert paths_of(load("Folder", tmp_path, num_shots=2)) == paths_of(dataset)


def test_images_deeper_in_a_class_folder(tmp_path, load):
    for name in ("a", "b"):
        trees.put_images(tmp_path / name / "2024" / "may", [f"{i}.JPG" for i in range(4)])
    dataset = load("Folder", tmp_path)
    assert dataset.classnames == ["a", "b"]
    assert sum(map(len, paths_of(dataset))) == 8


def test_refusals(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; DATASET.ROOT must name"):
        load("Folder", tmp_path / "nowhere")
    trees.put_images(tmp_path / "one" / "a", ["1.jpg", "2.jpg"])
    with pytest.raises(ValueError, match="at least 2 folders with images, one per class, got 1"):
        load("Folder", tmp_path / "one")
    put_parts(tmp_path / "two", train={"a": 2, "b": 2}, test={"c": 1, "a": 1})
    with pytest.raises(ValueError, match="the class of test/c/test0.jpg has no training image"):
        load("Folder", tmp_path / "two")
    for name in ("a", "b"):
        trees.put_images(tmp_path / "three" / name, ["1.jpg"])
    with pytest.raises(ValueError, match="leaves no test images; a class needs two images"):
        load("Folder", tmp_path / "three")
    assert not (tmp_path / "three" / ".capt").exists()


def test_labels_with_a_gap(own, load):
    load("Folder", own)
    path = own / ".capt/split.json"
    split = json.loads(path.read_text())
    for part in ("train", "val", "test"):
        split[part] = [[p, 7 if label == 1 else label, name] for p, label, name in split[part]]
    path.write_text(json.dumps(split))
    with pytest.raises(ValueError, match=r"labels must be 0 to C-1, .*split.json skips 1 but has 7 \(red fox/"):
        load("Folder", own)
