"""The run's data set seen whole, and which images may choose an epoch."""

from types import SimpleNamespace

import pytest
from yacs.config import CfgNode

from trainers.capt.run import dataset
from trainers.capt.run.dataset import all_classnames, check_selection, rebuilt_dataset


def items(*names):
    return [SimpleNamespace(impath=name) for name in names]


@pytest.fixture
def cfg(tmp_path):
    data = {"NAME": "Drawn", "NUM_SHOTS": 4, "SUBSAMPLE_CLASSES": "base"}
    cfg = CfgNode({"DATASET": data, "TRAINER": {"CAPT": {"SEM": {"PROMPTS": str(tmp_path)}}}})
    cfg.freeze()
    return cfg


@pytest.fixture
def built(monkeypatch):
    """Configurations that a data set was built for."""
    found = []
    whole = SimpleNamespace(classnames=["cup", "jug", "vase", "fox"])
    monkeypatch.setattr(dataset, "build_dataset", lambda cfg: found.append(cfg) or whole)
    return found


def test_other_keys_for_the_data_set_alone(cfg, built):
    rebuilt_dataset(cfg, NUM_SHOTS=-1)
    assert (built[0].DATASET.NUM_SHOTS, built[0].DATASET.SUBSAMPLE_CLASSES) == (-1, "base")
    assert cfg.DATASET.NUM_SHOTS == 4
    assert cfg.is_frozen()


def test_names_of_all_classes_are_read_only_for_a_file_that_counts_by_them(cfg, built, tmp_path):
    assert all_classnames(cfg, ["cup", "jug"]) == ["cup", "jug"]
    (tmp_path / "drawn_pairs.json").write_text("{}")
    assert all_classnames(cfg, ["cup", "jug"]) == ["cup", "jug"]
    assert not built
    (tmp_path / "DRAWN_prompt_pairs.json").write_text("{}")
    assert all_classnames(cfg, ["cup", "jug"]) == ["cup", "jug", "vase", "fox"]
    assert built[0].DATASET.SUBSAMPLE_CLASSES == "all"


def test_a_run_of_all_classes_knows_them(cfg, built, tmp_path):
    (tmp_path / "drawn_prompt_pairs.json").write_text("{}")
    cfg.defrost()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    assert all_classnames(cfg, ["cup"]) == ["cup"]
    assert not built


def test_validation_images_of_their_own_may_choose(cfg):
    check_selection(cfg, SimpleNamespace(val=items("a", "b"), test=items("c")))


@pytest.mark.parametrize(
    "val", [None, [], items("c"), items("a", "c")], ids=["none", "empty", "test's", "some of test's"]
)
def test_test_images_never_choose(cfg, val):
    with pytest.raises(ValueError, match="Drawn has none; set TEST.FINAL_MODEL last_step"):
        check_selection(cfg, SimpleNamespace(val=val, test=items("c", "d")))
