"""All fifteen loaders on small trees in the real layouts."""

import json
import os

import pytest
import trees

# name: class names in label order, sizes of train, val, test (None: no val)
EXPECTED = {
    "Caltech101": (["face", "leopard", "motorbike", "accordion", "airplane"], 25, 10, 15),
    "Food101": (["apple_pie", "baklava", "waffles"], 15, 6, 9),
    "DescribableTextures": (["banded", "zigzagged"], 10, 4, 6),
    "EuroSAT": (["Annual Crop Land", "Forest", "Sea or Lake"], 15, 6, 9),
    "OxfordPets": (["abyssinian", "american_bulldog", "egyptian_mau"], 15, 3, 9),
    "StanfordCars": (
        ["2000 AM General Hummer SUV", "2012 Audi TTS Coupe", "2012 Ram C/V Cargo Van Minivan"],
        12,
        3,
        6,
    ),
    "OxfordFlowers": (["pink primrose", "hard-leaved pocket orchid", "canterbury bells"], 15, 6, 9),
    "FGVCAircraft": (["707-320", "Cessna 208", "A310"], 12, 12, 12),
    "SUN397": (["abbey", "outdoor apartment_building", "youth_hostel"], 12, 3, 9),
    "UCF101": (["Apply_Eye_Makeup", "Yo_Yo", "Tai_Chi"], 12, 3, 9),
    "ImageNet": (["tench", "goldfish", "great white shark", "tabby cat"], 24, 12, 12),
    "ImageNetV2": (["tench", "goldfish", "tabby cat", "great white shark"], 8, None, 8),
    "ImageNetSketch": (["tench", "goldfish", "great white shark", "tabby cat"], 8, None, 8),
    "ImageNetA": (["goldfish", "tabby cat"], 4, None, 4),
    "ImageNetR": (["tench", "great white shark"], 4, None, 4),
}
FEW_SHOT = [name for name in EXPECTED if not name.startswith("ImageNet")]
WITH_SPLIT_FILE = [name for name in FEW_SHOT if name != "FGVCAircraft"]


def keys(items):
    return [(item.impath, item.label, item.classname) for item in items]


@pytest.mark.parametrize("name", EXPECTED)
def test_reads_the_original_layout(name, load, tmp_path):
    trees.BUILDERS[name](tmp_path)
    dataset = load(name, tmp_path)
    classnames, num_train, num_val, num_test = EXPECTED[name]
    assert dataset.classnames == classnames
    assert dataset.num_classes == len(classnames)
    assert (len(dataset.train_x), len(dataset.test)) == (num_train, num_test)
    assert (None if dataset.val is None else len(dataset.val)) == num_val
    for part in (dataset.train_x, dataset.val or [], dataset.test):
        assert all(os.path.isfile(item.impath) for item in part)
        assert all(classnames[item.label] == item.classname for item in part)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_train_val_and_test_share_no_image(name, load, tmp_path):
    trees.BUILDERS[name](tmp_path)
    dataset = load(name, tmp_path)
    paths = [{item.impath for item in part} for part in (dataset.train_x, dataset.val, dataset.test)]
    assert len(set.union(*paths)) == sum(map(len, paths)) == sum(EXPECTED[name][1:])


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_saved_split_is_read_back(name, load, tmp_path, capsys):
    trees.BUILDERS[name](tmp_path)
    made = load(name, tmp_path)
    assert "not comparable with published ones" in " ".join(capsys.readouterr().out.split())
    with open(made.split_path) as file:
        split = json.load(file)
    assert [len(split[part]) for part in ("train", "val", "test")] == list(EXPECTED[name][1:])
    path, label, classname = split["train"][0]
    assert os.path.join(made.image_dir, path) == made.train_x[0].impath
    assert (label, classname) == (made.train_x[0].label, made.train_x[0].classname)

    read = load(name, tmp_path, seed=2)
    assert f"Reading split from {made.split_path}\n" in capsys.readouterr().out
    for a, b in ((made.train_x, read.train_x), (made.val, read.val), (made.test, read.test)):
        assert keys(a) == keys(b)


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_made_split_depends_on_no_seed(name, load, tmp_path):
    """On a disk where it cannot be saved, every seed must train and test on the same split, and draw the same shots."""
    trees.BUILDERS[name](tmp_path)
    first = load(name, tmp_path, num_shots=2, seed=5)
    os.remove(first.split_path)
    os.remove(os.path.join(first.split_fewshot_dir, "shot_2-seed_5.pkl"))
    again = load(name, tmp_path, num_shots=2, seed=5)
    assert keys(first.train_x) == keys(again.train_x)
    os.remove(first.split_path)
    assert keys(load(name, tmp_path, seed=6).test) == keys(first.test)


@pytest.mark.parametrize("name", [*FEW_SHOT, "ImageNet"])
def test_base_and_new_halves(name, load, tmp_path):
    trees.BUILDERS[name](tmp_path)
    every = load(name, tmp_path, num_shots=2)
    base, new = (load(name, tmp_path, num_shots=2, subsample=half) for half in ("base", "new"))
    classnames = EXPECTED[name][0]
    middle = (len(classnames) + 1) // 2
    assert base.classnames == classnames[:middle]
    assert new.classnames == classnames[middle:]
    for part in ("train_x", "val", "test"):
        halves = [{item.impath for item in getattr(half, part)} for half in (base, new)]
        assert halves[0] | halves[1] == {item.impath for item in getattr(every, part)}
        assert not halves[0] & halves[1]
    assert {item.label for item in new.test} == set(range(len(classnames) - middle))


@pytest.mark.parametrize("name", ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"])
def test_variants_ignore_shots_and_halves(name, load, tmp_path):
    trees.BUILDERS[name](tmp_path)
    dataset = load(name, tmp_path, num_shots=1, subsample="base")
    assert dataset.classnames == EXPECTED[name][0]
    assert dataset.train_x is dataset.test


@pytest.mark.parametrize("name", EXPECTED)
def test_missing_folder_names_it_and_the_docs(name, load, tmp_path):
    from dassl.data.datasets import DATASET_REGISTRY

    folder = DATASET_REGISTRY.get(name).dataset_dir
    message = f"no folder {tmp_path / folder}; docs/DATASETS.md, section {name}, says"
    with pytest.raises(FileNotFoundError) as error:
        load(name, tmp_path)
    assert message in str(error.value)


def test_root_given_one_folder_too_deep(load, caltech):
    with pytest.raises(FileNotFoundError, match="--root must be the folder above caltech-101/"):
        load("Caltech101", caltech / "caltech-101")


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("OxfordPets", "oxford_pets/annotations/trainval.txt"),
        ("StanfordCars", "stanford_cars/devkit/cars_meta.mat"),
        ("StanfordCars", "stanford_cars/cars_test_annos_withlabels.mat"),
        ("OxfordFlowers", "oxford_flowers/cat_to_name.json"),
        ("FGVCAircraft", "fgvc_aircraft/variants.txt"),
        ("SUN397", "sun397/Testing_01.txt"),
        ("UCF101", "ucf101/ucfTrainTestlist/classInd.txt"),
        ("ImageNet", "imagenet/classnames.txt"),
        ("ImageNetA", "imagenet-adversarial/classnames.txt"),
    ],
)
def test_missing_file_names_it_and_the_docs(name, removed, load, tmp_path):
    trees.BUILDERS[name](tmp_path)
    (tmp_path / removed).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load(name, tmp_path)
    assert str(error.value) == f"no {tmp_path / removed}; docs/DATASETS.md, section {name}, says where it comes from"


def test_missing_images_are_counted_and_shown(load, tmp_path):
    trees.BUILDERS["FGVCAircraft"](tmp_path)
    for number in range(4):
        (tmp_path / f"fgvc_aircraft/images/{number:07d}.jpg").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load("FGVCAircraft", tmp_path)
    assert "4 of 36 listed images are missing" in str(error.value)
    assert "0000000.jpg, 0000001.jpg, 0000002.jpg; docs/DATASETS.md, section FGVCAircraft" in str(error.value)


def test_imagenet_val_is_test(load, tmp_path):
    trees.BUILDERS["ImageNet"](tmp_path)
    dataset = load("ImageNet", tmp_path, num_shots=2, subsample="base")
    assert dataset.val is dataset.test


def test_flat_imagenet_val_names_folder_and_fix(load, tmp_path):
    trees.BUILDERS["ImageNet"](tmp_path)
    val = tmp_path / "imagenet/images/val"
    for folder in list(val.iterdir()):
        for image in list(folder.iterdir()):
            image.rename(val / f"{folder.name}{image.name}")
        folder.rmdir()
    with pytest.raises(FileNotFoundError) as error:
        load("ImageNet", tmp_path)
    assert f"{val} has no class folders, so the test set is empty" in str(error.value)
    assert f"move each validation image into {val}/<wnid>/" in str(error.value)
    assert not (tmp_path / "imagenet/preprocessed.pkl").exists()


def test_imagenet_folders_must_agree(load, tmp_path):
    trees.BUILDERS["ImageNet"](tmp_path)
    trees.put_images(tmp_path / "imagenet/images/train/n09999999", ["a.JPEG"])
    with pytest.raises(FileNotFoundError, match=r"1 are in one only, e\.g\. n09999999"):
        load("ImageNet", tmp_path)


def test_imagenet_class_without_a_name(load, tmp_path):
    trees.BUILDERS["ImageNetR"](tmp_path)
    trees.put_images(tmp_path / "imagenet-rendition/imagenet-r/n09999999", ["a.jpg"])
    with pytest.raises(FileNotFoundError, match=r"classnames\.txt has no line for the class folder n09999999"):
        load("ImageNetR", tmp_path)


def test_imagenet_empty_class_folder(load, tmp_path):
    trees.BUILDERS["ImageNetV2"](tmp_path)
    folder = tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val/2"
    for image in list(folder.iterdir()):
        image.unlink()
    with pytest.raises(FileNotFoundError, match="no images in .*/2; docs/DATASETS.md, section ImageNetV2"):
        load("ImageNetV2", tmp_path)


def test_imagenet_cache_is_used_and_rebuilt_when_stale(load, tmp_path, capsys):
    trees.BUILDERS["ImageNet"](tmp_path)
    first = load("ImageNet", tmp_path)
    trees.put_images(tmp_path / "imagenet/images/train/n01440764", ["late.JPEG"])
    assert keys(load("ImageNet", tmp_path).train_x) == keys(first.train_x)

    names = tmp_path / "imagenet/classnames.txt"
    names.write_text(names.read_text().replace("tench", "fish"))
    capsys.readouterr()
    renamed = load("ImageNet", tmp_path)
    assert "listing the folders again: its train classes are not those of the folders" in capsys.readouterr().out
    assert renamed.classnames[0] == "fish"
    assert len(renamed.train_x) == 25

    (tmp_path / "imagenet").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moved").rename(tmp_path / "elsewhere/imagenet")
    moved = load("ImageNet", tmp_path / "elsewhere")
    assert "listing the folders again: its train images are not all under" in capsys.readouterr().out
    assert os.path.isfile(moved.train_x[0].impath)
