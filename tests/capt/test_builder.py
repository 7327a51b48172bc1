"""The bank's builder: who judges which views, what a bank depends on, and what the log says of it."""

import hashlib
from types import SimpleNamespace

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_capt import CLASSES
from yacs.config import CfgNode

from trainers.capt.bank import builder
from trainers.capt.bank.builder import BankBuilder, bank_fingerprint, fold_of
from trainers.capt.bank.confusion_bank import ConfusionBank
from trainers.capt.bank.files import BankMismatchError
from trainers.capt.bases.learners import BaseSpec
from trainers.capt.config import extend_cfg
from trainers.capt.method.systematic import SystematicShift
from trainers.capt.run.feature_cache import ViewBatch

NUM_IMAGES = 12


@pytest.fixture
def cfg():
    top = {"DATASET": {"NAME": "Drawn", "NUM_SHOTS": 4}, "SEED": 1, "OUTPUT_DIR": ""}
    cfg = CfgNode({**top, "INPUT": {}, "TRAIN": {}, "TRAINER": {}})
    extend_cfg(cfg)
    return cfg


@pytest.fixture
def source():
    return [SimpleNamespace(impath=f"/data/train/{i}.png", label=i % len(CLASSES)) for i in range(NUM_IMAGES)]


class Encoder:
    """Views of random pictures; remembers for whom they were made."""

    def __init__(self):
        self.calls = []

    def __call__(self, base, source, num_views, title, images=None, token_views=None):
        images = list(range(len(source)) if images is None else images)
        self.calls.append((base, num_views, images))
        for view in range(num_views):
            pixels = tiny_capt.images(len(source), seed=view)[images]
            z, cls, tokens = tiny_capt.encode(base, pixels)
            label = torch.tensor([source[i].label for i in images])
            if token_views == 0:
                cls = tokens = None
            yield ViewBatch(z, cls, tokens, label, torch.tensor(images), torch.full((len(images),), view))


def make_builder(cfg, base, name="ZeroshotCLIP", shift=None):
    base.set_classes(CLASSES)
    systematic = SystematicShift(base.embed_dim)
    if shift is not None:
        systematic.shift.copy_(shift)
    spec = BaseSpec(name=name)
    return BankBuilder(cfg, base, spec, Encoder(), lambda path: path.removeprefix("/data/"), 1, systematic)


# What a bank depends on

CHANGES = [
    ("SEED", 2),
    ("DATASET.NAME", "Other"),
    ("DATASET.NUM_SHOTS", 8),
    ("TRAINER.CAPT.BANK.SHOTS", -1),
    ("TRAINER.CAPT.BANK.SOURCE", "zeroshot"),
    ("TRAINER.CAPT.BANK.VIEWS", 2),
    ("TRAINER.CAPT.BANK.COUNTS", "soft"),
    ("TRAINER.CAPT.BANK.NEAR_MISSES", 0.5),
    ("TRAINER.CAPT.BASE.NAME", "CoOp"),
    ("TRAINER.CAPT.BASE.TEMPLATE", "a drawing of a {}."),
]


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=[key for key, _ in CHANGES])
def test_another_setting_is_another_bank(cfg, key, value):
    before = bank_fingerprint(cfg, CLASSES, "digest")
    assert bank_fingerprint(cfg, CLASSES, "digest") == before
    cfg.merge_from_list([key, value])
    assert bank_fingerprint(cfg, CLASSES, "digest") != before


def test_other_classes_another_order_or_another_base_are_another_bank(cfg):
    found = {str(bank_fingerprint(cfg, *of)) for of in ((CLASSES, "a"), (CLASSES, "b"), (CLASSES[::-1], "a"))}
    assert len(found) == 3


@pytest.mark.parametrize(("key", "value"), [("SAM.SHRINKAGE", 1.0), ("MGDE.GAIN", 0.1), ("CACHE.VIEWS", 0)])
def test_what_a_bank_does_not_hold_is_not_in_its_fingerprint(cfg, key, value):
    before = bank_fingerprint(cfg, CLASSES, "digest")
    cfg.merge_from_list([f"TRAINER.CAPT.{key}", value])
    assert bank_fingerprint(cfg, CLASSES, "digest") == before


def test_folds_are_known_by_what_their_yaml_says(cfg, tmp_path):
    yaml = tmp_path / "fold.yaml"
    cfg.merge_from_list(["TRAINER.CAPT.BANK.SOURCE", "crossfit", "TRAINER.CAPT.BANK.FOLD_CONFIG", str(yaml)])
    found = []
    for text in ("OPTIM: {LR: 1}", "OPTIM: {LR: 2}"):
        yaml.write_text(text)
        found.append(bank_fingerprint(cfg, CLASSES, "digest")["folds"])
        assert found[-1] == f"4-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    assert found[0] != found[1]


def test_the_shift_is_part_of_it_where_there_is_one(cfg, base):
    plain = make_builder(cfg, base).fingerprint()
    assert "systematic" not in plain  # banks of runs from before there was a shift stay theirs
    shifted = make_builder(cfg, base, shift=tiny_capt.unit(64)).fingerprint()
    assert shifted.pop("systematic")
    assert shifted == plain


# Who judges


def test_the_base_judges_behind_the_shift(cfg, base, source):
    shift = 0.8 * tiny_capt.unit(64, seed=4)
    bank = make_builder(cfg, base, shift=shift).build(source)
    z, _, _ = tiny_capt.encode(base, tiny_capt.images(NUM_IMAGES, seed=0))
    moved = torch.nn.functional.normalize(z + shift, dim=-1)
    answer = (moved @ base.text_features.t()).argmax(dim=1)
    assert not torch.equal(answer, (z @ base.text_features.t()).argmax(dim=1))
    index, pseudo_label = (getattr(bank.entries, name)[: len(bank)] for name in ("index", "pseudo_label"))
    assert torch.equal(pseudo_label, answer[index])
    assert bank.num_confused == sum(int(answer[i]) != item.label for i, item in enumerate(source))


def test_a_frozen_clip_is_its_own_judge_whatever_the_source(cfg, base, source):
    """With zero-shot CLIP as the base there is nothing to cross-fit, and no other judge."""
    found = []
    for name in ("base", "zeroshot", "crossfit"):
        cfg.TRAINER.CAPT.BANK.SOURCE = name
        made = make_builder(cfg, base)
        found.append(made.build(source).state_dict())
        assert len(made.encode.calls) == 1
    for other in found[1:]:
        assert all(torch.equal(other[key], value) for key, value in found[0].items())


def test_zero_shot_clip_judges_a_learned_base(cfg, base, source):
    cfg.TRAINER.CAPT.BANK.SOURCE = "zeroshot"
    made = make_builder(cfg, base, name="CoOp")
    made.build(source)
    judge, num_views, images = made.encode.calls[0]  # before the views themselves are made
    assert judge is not base
    assert (num_views, images) == (1, list(range(NUM_IMAGES)))
    assert made.encode.calls[1][0] is base


def test_each_fold_is_judged_by_the_base_that_did_not_see_it(cfg, base, source, monkeypatch):
    cfg.merge_from_list(["TRAINER.CAPT.BANK.SOURCE", "crossfit", "TRAINER.CAPT.BANK.FOLDS", 3])
    made = make_builder(cfg, base, name="CoOp")
    kept = []

    def fit(cfg, items, directory, prompted, spec):
        assert torch.is_grad_enabled()  # a base is trained in there
        kept.append([item.impath for item in items])
        return tiny_capt.build_base(base.prompted, BaseSpec(template=f"fold {len(kept)} of a {{}}"))

    monkeypatch.setattr(builder, "fit_fold", fit)
    made.build(source)
    for (judge, _, images), seen in zip(made.encode.calls[:3], kept, strict=True):
        assert judge is not base
        judged = {source[i].impath for i in images}
        assert not judged & set(seen)
        assert len(judged) + len(seen) == NUM_IMAGES


def test_views_of_the_cache_are_not_encoded_again(cfg, base, source):
    cfg.TRAINER.CAPT.BANK.VIEWS = 2
    made = make_builder(cfg, base)
    encoded = made.build(source)
    batches = list(Encoder()(base, source, 2, ""))
    made.encode.calls.clear()
    cached = made.build(source, SimpleNamespace(num_views=2, views=lambda num_views: batches[:num_views]))
    assert not made.encode.calls
    for name, value in encoded.state_dict().items():
        assert torch.equal(cached.state_dict()[name], value), name


def test_a_cache_that_has_not_room_for_the_banks_views_is_not_read(cfg, base, source):
    cfg.TRAINER.CAPT.BANK.VIEWS = 2
    made = make_builder(cfg, base)
    made.build(source, SimpleNamespace(num_views=1, views=None))
    assert [num_views for _, num_views, _ in made.encode.calls] == [2]


@pytest.mark.parametrize("num_views", [1, 2])
def test_patch_tokens_go_to_main_memory_which_is_taken_once(cfg, base, source, num_views):
    """Not into the entries, and the errors' are found there among all images'."""
    cfg.TRAINER.CAPT.BANK.VIEWS, cfg.TRAINER.CAPT.BANK.NEAR_MISSES = num_views, 2.0
    bank = make_builder(cfg, base).build(source)
    assert 0 < len(bank) < NUM_IMAGES * num_views
    assert bank.entries.tokens.shape[1] == 0
    held = bank.token_source.tokens
    assert (held.device.type, len(held)) == ("cpu", NUM_IMAGES * num_views)
    every = torch.stack([batch.tokens for batch in Encoder()(base, source, num_views, "")])
    entries = bank.entries
    expected = every[entries.view[:-1], entries.index[:-1]]
    assert torch.equal(bank.tokens_of(torch.arange(len(bank))), expected)
    bank.hold_tokens(chunk=2)
    assert torch.equal(bank.entries.tokens[:-1], expected)


def test_near_misses_may_be_left_out(cfg, base, source):
    everything = make_builder(cfg, base).build(source)
    assert len(everything) == NUM_IMAGES  # each right view with its runner-up
    cfg.TRAINER.CAPT.BANK.NEAR_MISSES = 2.0
    errors = make_builder(cfg, base).build(source)
    assert len(errors) == errors.num_confused == everything.num_confused < NUM_IMAGES


def test_only_counted_images_say_that_names_look_wrong(cfg, base, monkeypatch):
    """All images of a class are taken for another; soft counts are no share of images."""
    source = [SimpleNamespace(impath=f"/data/{i}.png", label=0) for i in range(NUM_IMAGES)]

    def never_right(views):
        return torch.eye(len(CLASSES))[torch.ones(len(views.z), dtype=torch.long)] * 0.9 + 0.02

    monkeypatch.setattr(BankBuilder, "_judge", lambda self, source: never_right)
    (note,) = make_builder(cfg, base).build(source).notes
    assert note.startswith("cup: hardly any image")
    cfg.TRAINER.CAPT.BANK.COUNTS = "soft"
    assert make_builder(cfg, base).build(source).notes == []


# A run's bank


def test_a_run_stores_its_bank_and_says_what_is_in_it(cfg, base, source, tmp_path, capsys):
    bank = make_builder(cfg, base).build_for_run(tmp_path, source)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "Bank protocol: honest, from the 12 training images of this run"
    assert told[1] == f"Confusion bank: {bank.num_confused} confused views, {len(bank) - bank.num_confused} near misses"
    a, b, count = bank.top_pairs(1)[0]
    assert told[2] == f"  {a} / {b}: {count:.4g}"
    stored = ConfusionBank.load(tmp_path)
    assert stored.paths == [item.impath.removeprefix("/data/") for item in source]
    stored.check(bank.fingerprint)


class NoError(list):
    """A bank of near misses."""

    num_confused, notes = 0, ("a note",)

    def top_pairs(self, _):
        return []


def test_a_bank_without_an_error_says_so(capsys):
    builder._describe(NoError("abc"))
    assert capsys.readouterr().out.splitlines() == [
        "Confusion bank: 0 confused views, 3 near misses",
        "The base model makes no error on these images; BANK.SOURCE zeroshot or crossfit would find some",
        "  a note",
    ]


def test_a_resumed_run_builds_its_bank_anew(cfg, base, source, tmp_path):
    first = make_builder(cfg, base).build_for_run(tmp_path, source)
    again = make_builder(cfg, base).build_for_run(tmp_path, source)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in first.state_dict().items())


def test_the_bank_of_another_run_is_not_overwritten(cfg, base, source, tmp_path):
    make_builder(cfg, base).build_for_run(tmp_path, source)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    cfg.SEED = 2
    with pytest.raises(BankMismatchError, match="seed"):
        make_builder(cfg, base).build_for_run(tmp_path, source)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# Folds


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(2, 5), st.integers(-3, 10**6))
def test_every_image_has_one_fold_and_classes_are_spread(labels, num_folds, seed):
    fold = fold_of(labels, num_folds, seed)
    assert fold.shape == (len(labels),)
    assert int(fold.min()) >= 0
    assert int(fold.max()) < num_folds
    sizes = torch.bincount(fold, minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1
    for label in set(labels):
        own = torch.bincount(fold[torch.tensor(labels) == label], minlength=num_folds)
        assert own.max() - own.min() <= 1
    assert torch.equal(fold, fold_of(labels, num_folds, seed))
