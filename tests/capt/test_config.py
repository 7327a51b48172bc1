"""The node's checks, the hand-written prompts, safe files, views, and the examples in the docstrings."""

import doctest
import importlib
import os
import pickle
import pkgutil
import random

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default

import trainers.capt as package
from trainers.capt.bank.builder import fold_of
from trainers.capt.bases.templates import CUSTOM_TEMPLATES, IMAGENET_TEMPLATES_SELECT
from trainers.capt.config import PUBLISHED, check_capt, extend_cfg
from trainers.capt.run.feature_cache import ViewDataset, hash_seed
from trainers.capt.run.files import checkpoint_file, read_checkpoint, write_atomically, write_json


@pytest.fixture
def node():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg.TRAINER.CAPT


BAD = {
    "PREC": ("fp8", "one of fp16, fp32, bf16, amp"),
    "BASE.NAME": ("CoOops", "one of ZeroshotCLIP"),
    "BASE.CLASS_TOKEN_POSITION": ("behind", "one of end, middle, front"),
    "BANK.SOURCE": ("llm", "one of base, zeroshot, crossfit"),
    "BANK.COUNTS": ("none", "one of hard, soft"),
    "BANK.SHOTS": (4, "0 (the run's own shots) or -1 (the full training set)"),
    "BANK.VIEWS": (0, "at least 1"),
    "BANK.NEAR_MISSES": (-0.5, "at least 0"),
    "BANK.FOLDS": (1, "at least 2"),
    "SEM.NUM_PAIRS": (0, "at least 1"),
    "SAM.NUM_REPRESENTATIVES": (0, "at least 1"),
    "SAM.ALPHA": (0.0, "greater than 0"),
    "SAM.GAMMA": (-1.0, "at least 0"),
    "MGDE.TOP_K": (4, "1, 2 or 3"),
    "MGDE.HIDDEN_RATIO": (0, "at least 1"),
    "MGDE.DROPOUT": (1.0, "in [0, 1)"),
    "MGDE.CENTROIDS": (-1, "at least 0"),
    "MGDE.BETA": (-0.1, "at least 0"),
    "MGDE.SHARPNESS": (0.0, "greater than 0"),
    "LOSS.CONFUSE": (-1.0, "at least 0"),
    "LOSS.BALANCE": (-1.0, "at least 0"),
    "LOSS.KEEP": (-1.0, "at least 0"),
    "CACHE.VIEWS": (-1, "at least 0"),
}


def test_defaults_and_the_published_protocol_are_valid(node):
    check_capt(node)
    node.merge_from_list([word for pair in PUBLISHED.items() for word in pair])
    check_capt(node)


@pytest.mark.parametrize("key", BAD)
def test_each_bad_value_is_named(node, key):
    value, rule = BAD[key]
    node.merge_from_list([key, value])
    with pytest.raises(ValueError, match="must be") as caught:
        check_capt(node)
    assert f"TRAINER.CAPT.{key} must be {rule}" in str(caught.value)
    assert str(caught.value).endswith(f"got {value!r}")


def test_all_problems_in_one_message(node):
    node.merge_from_list([word for key, (value, _) in BAD.items() for word in (key, value)])
    with pytest.raises(ValueError, match="must be") as caught:
        check_capt(node)
    assert all(f"TRAINER.CAPT.{key} must be" in str(caught.value) for key in BAD)


# Prompts of CoOp's zsclip.py, as printed there.
COOP = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "StanfordCars": "a photo of a {}.",
    "Food101": "a photo of {}, a type of food.",
    "SUN397": "a photo of a {}.",
    "Caltech101": "a photo of a {}.",
    "UCF101": "a photo of a person doing {}.",
    "ImageNet": "a photo of a {}.",
    "ImageNetSketch": "a photo of a {}.",
    "ImageNetV2": "a photo of a {}.",
    "ImageNetA": "a photo of a {}.",
    "ImageNetR": "a photo of a {}.",
}


def test_templates_are_coops():
    assert {name: text for name, text in CUSTOM_TEMPLATES.items() if name not in ("Glyphs", "FashionMNIST")} == COOP
    assert len(IMAGENET_TEMPLATES_SELECT) == 7


# Files


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})

    def break_off(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, break_off)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(path.parent) == ["file.json"]
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_which_checkpoint(tmp_path):
    folder = tmp_path / "capt"
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; train first"):
        checkpoint_file(str(tmp_path), "capt")
    folder.mkdir()
    for name in ("model.pth.tar-1", "model.pth.tar-2"):
        (folder / name).touch()
    (folder / "checkpoint").write_text("model.pth.tar-2\n")
    assert checkpoint_file(str(tmp_path), "capt").endswith("model.pth.tar-2")
    assert checkpoint_file(str(tmp_path), "capt", 1).endswith("model.pth.tar-1")
    (folder / "model-best.pth.tar").touch()  # a run that selects saves its last epoch as well, after the best
    assert checkpoint_file(str(tmp_path), "capt").endswith("model-best.pth.tar")
    with pytest.raises(FileNotFoundError, match=r"model.pth.tar-7.*model.pth.tar-1"):
        checkpoint_file(str(tmp_path), "capt", 7)


class _Scheduler:
    def __init__(self):
        self.last_epoch = 3


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_are_read_without_running_them(tmp_path, legacy):
    state = {"w": torch.ones(2)}
    marker = str(tmp_path / "ran")
    content = {"state_dict": state, "epoch": 3, "scheduler": _Scheduler(), "evil": _Evil(marker)}
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(str(tmp_path / "file"))
    assert torch.equal(read["state_dict"]["w"], state["w"])
    assert read["epoch"] == 3
    assert not os.path.exists(marker)


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint .* is the file complete\?"):
        read_checkpoint(str(path))
    path.write_bytes(pickle.dumps({"state_dict": {}})[:-3])
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(str(path))
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is no Dassl checkpoint: it holds no state_dict"):
        read_checkpoint(str(path))
    with pytest.raises(FileNotFoundError):
        read_checkpoint(str(tmp_path / "missing"))


# Views and folds


class _Item:
    impath, label = "x.png", 4


def _noise(image):
    return image + random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002 - as transforms do


def test_views_follow_from_seed_image_and_view_alone():
    views = ViewDataset([_Item] * 3, 3, lambda image: image, _noise, lambda path: torch.zeros(()), seed=1)
    first = [views[i][0].item() for i in range(9)]
    states = random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002
    torch.manual_seed(9)
    assert [views[i][0].item() for i in reversed(range(9))] == first[::-1]
    assert first[0] == first[3] == first[6] == 0  # view 0 is the test transform
    assert len(set(first)) == 7
    assert views[5][1:] == (4, 1, 2)
    assert len(set(states)) == 3


def test_views_leave_the_generators_alone():
    views = ViewDataset([_Item], 2, lambda image: image, _noise, lambda path: torch.zeros(()), seed=1)

    def draw(read):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        if read:
            views[1]
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    assert draw(True) == draw(False)


def test_seeds_are_the_same_on_every_machine():
    assert hash_seed(1, 2) == hash_seed(1, 2) != hash_seed(2, 1)
    assert 0 <= hash_seed(3) < 2**63


def test_folds_are_balanced_within_classes():
    labels = [0] * 4 + [1] * 5 + [2] * 3
    fold = fold_of(labels, 2, seed=1)
    for label in range(3):
        sizes = torch.bincount(fold[torch.tensor(labels) == label], minlength=2)
        assert sizes.max() - sizes.min() <= 1
    assert torch.equal(fold, fold_of(labels, 2, seed=1))
    assert not torch.equal(fold, fold_of(labels, 2, seed=2))


# Docstrings

MODULES = sorted(module.name for module in pkgutil.walk_packages(package.__path__, "trainers.capt."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0 or name not in ("trainers.capt.bank.confusion_bank", "trainers.capt.run.metrics")
