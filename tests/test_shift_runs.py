"""The systematic shift in whole runs: who chooses it, on what, who stands behind it, and where there is none."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize, one_hot

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import test_capt_end_to_end as end_to_end  # noqa: E402
import tiny_capt  # noqa: E402, F401
from test_capt_end_to_end import CLASSES, PARTS, _registered, build, coop_base, files  # noqa: E402, F401

import trainers.capt as capt  # noqa: E402
import trainers.capt.preparation as preparation_module  # noqa: E402
from trainers.capt.bank.builder import BankBuilder  # noqa: E402
from trainers.capt.bank.confusion_bank import ConfusionBank  # noqa: E402
from trainers.capt.method.held_out_classes import HeldOutChoice  # noqa: E402
from trainers.capt.method.shift_choice import PENALTIES  # noqa: E402

NO_TEST = ("TEST.NO_TEST", True)
CHOICE = HeldOutChoice(PENALTIES, 6, 1.25, 0.5, 4)  # a penalty under which v moves answers


@pytest.fixture
def chosen(monkeypatch):
    """Held-out classes choose a shift, whatever they are."""
    monkeypatch.setattr("trainers.capt.method.shift_choice.choose_penalty", lambda *_: CHOICE)


def shift_of(trainer):
    return trainer.model.refiner.systematic.shift


def lines_of(text, begin):
    return [line for line in text.splitlines() if line.startswith(begin)]


# What the choosing may look at


def forbid(loader):
    """Nobody may ask this loader's data set for an image any more; its transform may be read."""

    def refuse(data_set, index):
        raise AssertionError("an image was asked for that nothing may be chosen by")

    kind = type(loader.dataset)
    loader.dataset.__class__ = type("Forbidden", (kind,), {"__getitem__": refuse})


def test_nothing_is_chosen_by_test_images_validation_images_or_new_classes(files, tmp_path, monkeypatch):  # noqa: F811
    trainer = build(files, tmp_path, *NO_TEST, "TEST.FINAL_MODEL", "best_val")
    for loader in (trainer.dm.test_loader, trainer.dm.val_loader):
        forbid(loader)
        with pytest.raises(AssertionError, match="nothing may be chosen by"):
            next(iter(loader))
    opened, asked = [], []
    real_open, real_classes = Image.open, type(trainer.model.base).encode_classes
    monkeypatch.setattr(Image, "open", lambda path, *more: opened.append(str(path)) or real_open(path, *more))

    def encode_classes(base, classnames):
        asked.extend(classnames)
        return real_classes(base, classnames)

    monkeypatch.setattr(type(trainer.model.base), "encode_classes", encode_classes)
    trainer.before_train()
    assert {"shift", "gain"} <= trainer.choices.keys()  # both were made here
    allowed = {str(files / "data" / name / f"{i}.png") for name in CLASSES[:4] for i in PARTS["train"]}
    assert set(opened) == allowed
    assert set(asked) == set(CLASSES[:4])


# Who chooses, and who stands behind the shift


def test_a_tuned_base_is_judged_by_zero_shot_clip(files, coop_base, tmp_path, monkeypatch):  # noqa: F811
    seen, real = {}, preparation_module.set_shift

    def spied(systematic, base, views, judge, judged, seed):
        views, judged = list(views), list(judged)
        seen.update(base=base, judge=judge, views=views, judged=judged)
        return real(systematic, base, views, judge, judged, seed)

    monkeypatch.setattr(preparation_module, "set_shift", spied)
    keys = ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", str(coop_base))
    trainer = build(files, tmp_path / "tuned", *NO_TEST, *keys)
    trainer.before_train()
    base, judge = seen["base"], seen["judge"]
    assert base is trainer.model.base
    assert type(judge).__name__ == "ZeroshotCLIP"
    assert judge.classnames == CLASSES[:4]
    assert not torch.allclose(judge.text_features, base.text_features)
    views = Counter(view for batch in seen["views"] for view in batch.view.tolist())
    assert views == {0: 16, 1: 16}  # v is fitted in all the views that are kept, and judged in the plain one
    assert Counter(view for batch in seen["judged"] for view in batch.view.tolist()) == views
    build(files, tmp_path / "plain", *NO_TEST).before_train()
    assert seen["judge"] is seen["base"]  # zero-shot CLIP judges itself


@torch.no_grad()
def test_the_bank_files_the_errors_that_remain(files, tmp_path, chosen):  # noqa: F811
    trainer = build(files, tmp_path / "on", *NO_TEST)
    trainer.before_train()
    v, bank, base = shift_of(trainer), trainer.model.bank, trainer.model.base
    assert v.any()
    index = torch.arange(16)
    shots = trainer.cache.take(index, torch.zeros_like(index))

    def errors(z):
        taken = base.logits(z).argmax(dim=1)
        counts = torch.zeros(4, 4).index_put_((shots.label, taken), torch.ones(16), accumulate=True)
        return counts.fill_diagonal_(0)

    assert torch.equal(bank.counts, errors(normalize(shots.z + v, dim=-1)))
    assert not torch.equal(bank.counts, errors(shots.z))
    torch.testing.assert_close(bank.entries.feature[:-1], shots.z[bank.entries.index[:-1]])  # filed as they are
    off = build(files, tmp_path / "off", *NO_TEST, "TRAINER.CAPT.SYS.ON", False)
    off.before_train()
    assert torch.equal(off.model.bank.counts, errors(shots.z))
    assert bank.fingerprint["systematic"]  # another shift, another bank
    assert "systematic" not in off.model.bank.fingerprint


@torch.no_grad()
def test_new_classes_are_served_behind_the_shift(files, tmp_path, chosen):  # noqa: F811
    """By the trainer and by capt.load alike: where the bank knows nothing, logits are those of norm(z + v)."""
    run = build(files, tmp_path / "run", "OPTIM.MAX_EPOCH", 1)
    with torch.enable_grad():
        run.train()
    v = shift_of(run)
    assert v.any()
    new = build(files, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new")
    new.load_model(str(tmp_path / "run"), epoch=1)
    assert torch.equal(shift_of(new), v)
    new.set_model_mode("eval")
    (batch,) = new.test_loader
    logits, base_logits = new.inference(batch["img"])
    z = new._encode_images(batch["img"])[0]
    torch.testing.assert_close(logits, new.model.base.logits(normalize(z + v, dim=-1)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(base_logits, new.model.base.logits(z), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, base_logits, atol=1e-2)
    served = capt.load(tmp_path / "run").logits(batch["img"], CLASSES[4:])
    torch.testing.assert_close(served, logits, rtol=1e-4, atol=1e-4)


def test_the_record_holds_what_the_log_says(files, tmp_path, chosen, capsys):  # noqa: F811
    build(files, tmp_path, "OPTIM.MAX_EPOCH", 1).train()
    choices = json.loads((tmp_path / "results.json").read_text())["choices"]
    shift, gain = choices["shift"], choices["gain"]
    printed = capsys.readouterr().out
    assert lines_of(printed, "Systematic shift") == [
        f"Systematic shift: penalty {shift['strength']:.3g}, {shift['held_out_gain']:+.2f} ± "
        f"{shift['held_out_error']:.2f} points on {shift['held_out_classes']} held-out classes"
    ]
    assert lines_of(printed, "Gain of the corrections") == [
        f"Gain of the corrections: {gain['gain']:.3g} of at most {gain['largest']:g} "
        f"(temperature {gain['temperature']:.2f})"
    ]
    assert shift == CHOICE.to_dict()


# Where there is nothing to choose


@pytest.mark.parametrize(("num_classes", "shots"), [(1, 4), (2, 4), (3, 1), (4, 1)])
@torch.no_grad()
def test_few_classes_and_one_shot(files, tmp_path, monkeypatch, capsys, num_classes, shots):  # noqa: F811
    monkeypatch.setattr(end_to_end, "CLASSES", CLASSES[:num_classes])
    if num_classes == 4:  # one shot of four classes may find a shift; here it finds none
        none = HeldOutChoice(PENALTIES, None, 0.0, 0.0, 4)
        monkeypatch.setattr("trainers.capt.method.shift_choice.choose_penalty", lambda *_: none)
    with torch.enable_grad():
        trainer = build(files, tmp_path, "DATASET.NUM_SHOTS", shots, "OPTIM.MAX_EPOCH", 1)
        trainer.train()
    assert json.loads((tmp_path / "results.json").read_text())["num_classes"] == num_classes
    assert trainer.choices["shift"]["strength"] is None
    (line,) = lines_of(capsys.readouterr().out, "Systematic shift")
    why = "fewer than 4 classes cannot be held out from one another"
    assert line.startswith(f"Systematic shift: penalty none, {why if num_classes < 4 else 'the best gives'}")
    predictor = capt.load(tmp_path)
    images = [str(files / "data" / "kite" / f"{i}.png") for i in range(4)]
    predictor.serve(["kite", "wrench"])  # of which the bank knows nothing
    ((_, output),) = predictor.batches(images)
    assert torch.equal(output.logits, output.base_logits)


@torch.no_grad()
def test_a_bank_without_an_error(files, tmp_path, monkeypatch, capsys):  # noqa: F811
    """It says so, nothing is moved, and the logits are the base's to the last bit."""
    judge = lambda *_: lambda views: one_hot(views.label, 4).float()  # noqa: E731
    monkeypatch.setattr(BankBuilder, "_judge", judge)
    with torch.enable_grad():
        keys = ("TRAINER.CAPT.BANK.NEAR_MISSES", 2.0, "TRAINER.CAPT.SYS.ON", False)
        build(files, tmp_path, "OPTIM.MAX_EPOCH", 1, *keys).train()
    assert len(ConfusionBank.load(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert len(lines_of(printed, "The base model makes no error on these images")) == 1
    assert re.search(r"^Gain of the corrections: 0 of at most 2.4 ", printed, re.MULTILINE)
    images = [str(files / "data" / name / "7.png") for name in CLASSES[:4]]
    ((_, output),) = capt.load(tmp_path).batches(images)
    assert torch.equal(output.logits, output.base_logits)


@torch.no_grad()
def test_nothing_chosen_and_no_bank_is_the_base_to_the_last_bit(files, tmp_path):  # noqa: F811
    trainer = build(files, tmp_path)
    assert not shift_of(trainer).any()
    assert trainer.model.bank is None
    trainer.set_model_mode("eval")
    for batch in trainer.test_loader:
        logits, base_logits = trainer.inference(batch["img"])
        assert torch.equal(logits, base_logits)
