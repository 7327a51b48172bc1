"""Few-shot pickles are exchanged with CoOp, and cannot run code."""

import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
from dassl.data.datasets import Datum

from datasets.shot_cache import read_pickle
from datasets.splits import make_datum

# Drawn by CoOp's Caltech101 on the small tree of trees.py with the original Dassl, under the data root /data.
COOP_PICKLE = Path(__file__).parent.parent / "golden/coop_shot_2-seed_7.pkl"


@pytest.mark.regression
def test_pickle_of_coop_is_read(caltech, load, capsys):
    load("Caltech101", caltech)
    folder = caltech / "caltech-101/split_fewshot"
    folder.mkdir()
    shutil.copy(COOP_PICKLE, folder / "shot_2-seed_8.pkl")  # another seed's name: a fresh draw would differ
    capsys.readouterr()
    dataset = load("Caltech101", caltech, num_shots=2, seed=8)
    assert "sampling again" not in capsys.readouterr().out
    golden = read_pickle(str(COOP_PICKLE))
    for part, items in (("train", dataset.train_x), ("val", dataset.val)):
        assert [item.impath.replace(str(caltech), "/data") for item in items] == [i.impath for i in golden[part]]
        assert [(item.label, item.classname) for item in items] == [(i.label, i.classname) for i in golden[part]]


@pytest.mark.regression
def test_pickle_of_ours_equals_that_of_coop(caltech, load):
    """Same draw, same order, same class path, same attributes: CoOp can read it."""
    load("Caltech101", caltech)
    load("Caltech101", caltech, num_shots=2, seed=7)
    ours = pickle.loads((caltech / "caltech-101/split_fewshot/shot_2-seed_7.pkl").read_bytes())
    for item in (item for items in ours.values() for item in items):
        assert list(vars(item)) == ["_impath", "_label", "_domain", "_classname"]
        item._impath = item._impath.replace(str(caltech), "/data")
    assert pickle.dumps(ours) == pickle.dumps(pickle.loads(COOP_PICKLE.read_bytes()))


def test_written_class_path_is_that_of_dassl(caltech, load):
    load("Caltech101", caltech, num_shots=1)
    content = (caltech / "caltech-101/split_fewshot/shot_1-seed_1.pkl").read_bytes()
    assert b"dassl.data.datasets.base_dataset" in content
    assert Datum.__module__ == "dassl.data.datasets.base_dataset"


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_malicious_pickle_is_refused_and_does_not_run(protocol, caltech, load, tmp_path, capsys):
    load("Caltech101", caltech)
    target = tmp_path / "it_ran"
    path = caltech / "caltech-101/split_fewshot/shot_2-seed_1.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"train": [Malicious(str(target))], "val": []}, protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match="it wants posix.mkdir, only Datum is admitted"):
        read_pickle(str(path))
    dataset = load("Caltech101", caltech, num_shots=2)
    assert "sampling again: " in capsys.readouterr().out
    assert len(dataset.train_x) == 10
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a few-shot file"),
        (b"not a pickle", "is not a few-shot file"),
        (pickle.dumps({"train": [make_datum("a", 0, "a")]})[:-9], "is not a few-shot file"),
        (pickle.dumps([1]), "it holds no dict of lists"),
        (pickle.dumps({"train": {"a": 1}}), "it holds no dict of lists"),
        (pickle.dumps({"train": [1]}), "an entry is no Datum of an image"),
        (pickle.dumps({"train": [Datum.__new__(Datum)]}), "an entry is no Datum of an image"),
        (pickle.dumps({"train": [Datum]}), "an entry is no Datum of an image"),
        (pickle.dumps({"train": [random.Random(1)]}), "only Datum is admitted"),
    ],
)
def test_damaged_files_are_refused(content, message, tmp_path):
    path = tmp_path / "shot_1-seed_1.pkl"
    path.write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match=message) as error:
        read_pickle(str(path))
    assert str(path) in str(error.value)
