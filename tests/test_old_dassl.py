"""CAPT on the trainers of older and changed Dassls, each stood for by what is different there."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from dassl.engine import TrainerX
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))

import test_capt_end_to_end as end_to_end  # noqa: E402
from test_capt_end_to_end import _registered, coop_base, equal, files, read, weights  # noqa: E402, F401

import trainers.capt.bank.builder as builder_module  # noqa: E402
from trainers.capt.run.host_dassl import run_through, save_what_is_trained  # noqa: E402
from trainers.capt.trainer import CAPT  # noqa: E402


class Dassl050(TrainerX):
    """KgCoOp, ProGrad, BiomedCoOp: checkpoints without val_result, batches that do not name their images."""

    def save_model(self, epoch, directory, is_best=False, model_name=""):
        super().save_model(epoch, directory, is_best=is_best, model_name=model_name)

    def build_data_loader(self):
        super().build_data_loader()
        loader = self.train_loader_x
        whole = loader.dataset

        class Nameless(torch.utils.data.Dataset):
            data_source, transform = whole.data_source, whole.transform

            def __len__(self):
                return len(whole)

            def __getitem__(self, place):
                return {key: value for key, value in whole[place].items() if key != "index"}

        self.train_loader_x = DataLoader(Nameless(), loader.batch_size, sampler=loader.sampler)


class AtPromptsDassl(TrainerX):
    """ATPrompt's: no curves, and train() ends the process."""

    @property
    def write_scalar(self):
        raise AttributeError("commented out there")

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        for place, batch in enumerate(self.train_loader_x):
            self.batch_idx = place
            self.forward_backward(batch)

    def train(self):
        super().train()
        os._exit(0)


def build(files, out, dassl, *more):  # noqa: F811
    """CAPT as a host with that Dassl has it: the older classes stand where Dassl's own do."""
    registry = end_to_end.TRAINER_REGISTRY
    names = registry._obj_map
    ours = names["CAPT"]
    names["CAPT"] = type("CAPT", (CAPT, dassl), {})
    try:
        return end_to_end.build(files, out, *more)
    finally:
        names["CAPT"] = ours


@pytest.fixture(scope="module")
def usual(files, tmp_path_factory):  # noqa: F811
    """The run on the Dassl of today."""
    trainer = end_to_end.build(files, tmp_path_factory.mktemp("usual"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("more", [(), ("TEST.FINAL_MODEL", "best_val")], ids=["last_step", "best_val"])
def test_old_dassl_saves_and_tests(files, usual, tmp_path, more):  # noqa: F811
    trainer = build(files, tmp_path, Dassl050, "TRAIN.CHECKPOINT_FREQ", 0, *more)
    trainer.train()
    assert equal(weights(trainer), weights(usual)) or more
    assert (tmp_path / "capt" / "model.pth.tar-2").is_file()
    assert (tmp_path / "capt" / "model-best.pth.tar").is_file() == bool(more)
    assert read(tmp_path)[0]["accuracy"] == pytest.approx(trainer.test())


def test_batches_that_name_no_image(files, tmp_path):  # noqa: F811
    """Without a cache the images come from the loader; which image of the bank each is, its path says."""
    uncached = ("TRAINER.CAPT.CACHE.VIEWS", 0, "OPTIM.MAX_EPOCH", 1)
    trained = {}
    for name, dassl in (("named", TrainerX), ("nameless", Dassl050)):
        trainer = build(files, tmp_path / name, type(name, (dassl,), {}), *uncached)
        trainer.train()
        trained[name] = weights(trainer)
    assert equal(trained["named"], trained["nameless"])


def test_a_dassl_without_curves(files, usual, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("os._exit", lambda code: None)
    trainer = build(files, tmp_path, AtPromptsDassl)
    trainer.train()
    assert read(tmp_path)[0]["accuracy"] == read(Path(usual.output_dir))[0]["accuracy"]
    trainer.load_model(str(tmp_path), epoch=2)
    assert trainer.test(is_final=True) == read(tmp_path)[0]["accuracy"]


def test_cross_fitting_comes_back_from_a_train_that_ends_the_process(files, coop_base, tmp_path, monkeypatch):  # noqa: F811
    registry = builder_module.TRAINER_REGISTRY
    coop = registry._obj_map["CoOp"]
    ends = []
    monkeypatch.setattr("os._exit", ends.append)
    monkeypatch.setitem(registry._obj_map, "CoOp", type("CoOp", (coop, AtPromptsDassl), {}))
    config = tmp_path / "coop.yaml"
    config.write_text("TRAINER:\n  COOP:\n    N_CTX: 2\n    PREC: fp32\nOPTIM:\n  MAX_EPOCH: 1\n")
    keys = ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", str(coop_base))
    keys += ("TRAINER.CAPT.BANK.SOURCE", "crossfit", "TRAINER.CAPT.BANK.FOLDS", 2)
    trainer = end_to_end.build(files, tmp_path / "run", *keys, "TRAINER.CAPT.BANK.FOLD_CONFIG", str(config))
    trainer.train()
    assert not ends
    assert len(list((tmp_path / "run" / "crossfit").glob("*/prompt_learner/model.pth.tar-1"))) == 2


def test_a_train_of_the_trainers_own_is_used():
    class Own(TrainerX):
        def __init__(self):
            self.calls = []

        def train(self):
            self.calls.append("train")

    trainer = Own()
    run_through(trainer)
    assert trainer.calls == ["train"]


@pytest.mark.parametrize("fails", ["save_model", "test"])
def test_weights_are_on_disk_whatever_fails_at_the_end(files, usual, tmp_path, capsys, fails):  # noqa: F811
    def broken(self, *args, **kwargs):
        raise TypeError(f"{fails} of another version")

    dassl = type("Broken", (TrainerX,), {"save_model": broken} if fails == "save_model" else {})
    more = ("TEST.FINAL_MODEL", "best_val") if fails == "test" else ()
    trainer = build(files, tmp_path, dassl, "TRAIN.CHECKPOINT_FREQ", 0, *more)
    trainer.max_epoch = 1
    if fails == "test":
        trainer.test = lambda *args, **kwargs: broken(trainer)
    with pytest.raises(TypeError, match="of another version"):
        trainer.train()
    path = re.search(r"what was trained is in (\S+)", capsys.readouterr().out)[1]
    assert Path(path) == tmp_path / "capt" / "model.pth.tar-1"

    served = end_to_end.build(files, tmp_path / "served")
    served.load_model(str(tmp_path))
    assert equal(weights(served), weights(trainer))
    assert 0 <= served.test() <= 100


def test_what_an_epoch_has_saved_is_left_alone(usual):
    path = Path(usual.output_dir) / "capt" / "model.pth.tar-2"
    before = path.read_bytes()
    assert save_what_is_trained(usual, "capt") is None
    assert path.read_bytes() == before
