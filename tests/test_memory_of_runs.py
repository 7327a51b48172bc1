"""What whole runs take is what they said at their start, whatever fits; and what does not fit changes no answer."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "capt"))

from test_capt_end_to_end import _registered, build, files, read, weights  # noqa: E402, F401

from trainers.capt.bank.entry_tokens import EncodedTokens, HostTokens  # noqa: E402
from trainers.capt.bank.pair_features import PairFeatures  # noqa: E402

OFF = ("TRAINER.CAPT.CACHE.DISK_GB", 0, "TRAINER.CAPT.SYS.ON", False)
EXPERTS, NO_EXPERTS = ("TRAINER.CAPT.MGDE.BETA", 0.1), ("TRAINER.CAPT.MGDE.BETA", 0.0)
SHOTS = 16
ROW, BARE = 17 * 128 * 4 + 64 * 4 + 24, 64 * 4 + 24  # of a view with tokens and without, by hand
PATCHES = 16 * 128 * 4


def begun(files, out, *more):  # noqa: F811
    trainer = build(files, out, *OFF, *more)
    trainer.before_train()
    return trainer


def gigabytes(num_bytes):
    return ("TRAINER.CAPT.CACHE.MAX_GB", num_bytes / 2**30 + 1e-12)


@pytest.mark.parametrize(
    ("more", "views", "num_bytes"),
    [
        ((*EXPERTS, "TRAINER.CAPT.CACHE.VIEWS", 3), 3, 3 * SHOTS * ROW),
        ((*NO_EXPERTS, "TRAINER.CAPT.CACHE.VIEWS", 3), 3, SHOTS * (ROW + 2 * BARE)),
        ((*NO_EXPERTS, "TRAINER.CAPT.CACHE.VIEWS", 3, "TRAINER.CAPT.BANK.VIEWS", 2), 3, SHOTS * (2 * ROW + BARE)),
        ((*EXPERTS, "TRAINER.CAPT.CACHE.VIEWS", 3, *gigabytes(2.5 * SHOTS * ROW)), 2, 2 * SHOTS * ROW),
        ((*NO_EXPERTS, "TRAINER.CAPT.CACHE.VIEWS", 3, *gigabytes(SHOTS * (ROW + BARE))), 2, SHOTS * (ROW + BARE)),
    ],
)
def test_cache_bank_and_pairs_take_what_was_said(files, tmp_path, more, views, num_bytes):  # noqa: F811
    trainer = begun(files, tmp_path, *more)
    plan, cache, bank = trainer._memory, trainer.cache, trainer.model.bank
    assert (plan.cached_views, cache.num_views, plan.cache_bytes) == (views, views, num_bytes)
    assert sum(value.nbytes for value in vars(cache.rows).values()) == num_bytes
    entries = sum(v.nbytes for v in bank.entries.without_padding().values())
    assert bank.entries.tokens.shape[1] == 0
    assert entries + bank.filed.keys.nbytes + bank.filed.entry[:].nbytes + bank.counts.nbytes <= plan.bank_bytes
    rows = trainer.pairs.difference.nbytes + trainer.pairs.commonality.nbytes
    assert rows <= trainer.pairs.max_bytes + 2 * trainer.pairs.difference[0].nbytes


def test_it_is_said_before_anything_is_encoded(files, tmp_path, capsys):  # noqa: F811
    begun(files, tmp_path / "experts", *EXPERTS)
    begun(files, tmp_path / "none", *NO_EXPERTS)
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("Memory", "Feature cache", "Conf"))
    ]
    first, second, cache, bank = lines[:4]
    assert first == (
        "Memory: feature cache 0.00 GB in main memory (2 of 2 views); bank at most 0.00 GB, its patch tokens 0.00 GB "
        "in the cache; pairs of classes 0.00 GB"
    )
    assert second == "Memory: at most 0.00 GB of it on the CPU besides"
    assert cache.startswith("Feature cache: 16 images x 2 views")
    assert bank.startswith("Confusion bank:")
    assert "without patch tokens, which experts alone read" in lines[4]


def test_views_that_do_not_fit_are_named(files, tmp_path, capsys):  # noqa: F811
    begun(files, tmp_path, *EXPERTS, "TRAINER.CAPT.CACHE.VIEWS", 5, *gigabytes(2.5 * SHOTS * ROW))
    printed = capsys.readouterr().out
    assert "(2 of 5 views)" in printed
    assert "Feature cache: 16 images x 2 views, 0.00 GB, 3 more do not fit CACHE.MAX_GB 0.0\n" in printed


# A bank of the full training set, whose patch tokens fit or do not

FULL = ("TRAINER.CAPT.BANK.SHOTS", -1, "DATASET.NUM_SHOTS", 2, *EXPERTS)


def test_a_full_set_bank_keeps_finished_features_and_encodes_what_is_retrieved(files, tmp_path):  # noqa: F811
    """The same training, test and served answers, with the tokens in main memory and with tokens nowhere."""
    found = {}
    for name, kind, room in (
        ("held", HostTokens, 2 * 8 * ROW + SHOTS * PATCHES),
        ("nowhere", EncodedTokens, 2 * 8 * ROW + SHOTS * PATCHES - 1000),
    ):
        out = tmp_path / name
        trainer = build(files, out, *OFF, *FULL, *gigabytes(room))
        trainer.train()
        bank = trainer.model.bank
        assert isinstance(bank.token_source, kind)
        assert trainer.cache.num_views == 2
        assert len(bank) > 8  # more than the run's own shots
        served = build(files, tmp_path / f"{name}_test", *OFF, *FULL)
        served.load_model(str(out), epoch=2)
        assert not served.model.bank.has_tokens
        served.model.bank.tokens_of = None  # finished features are all there is to read
        served.test()
        found[name] = weights(trainer), read(out)[1]["probs"], read(tmp_path / f"{name}_test")[1]["probs"]
        np.testing.assert_allclose(found[name][1], found[name][2], rtol=1e-5, atol=1e-6)
    for key, value in found["held"][0].items():
        torch.testing.assert_close(found["nowhere"][0][key], value, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["nowhere"][1], found["held"][1], rtol=1e-3, atol=1e-5)


def test_views_that_are_encoded_again_are_decoded_once_for_each_image(files, tmp_path, monkeypatch):  # noqa: F811
    trainer = begun(files, tmp_path, *EXPERTS)
    encode, source = trainer._encode, trainer.dm.dataset.train_x
    reads, asked = [], [(0, 0), (0, 1), (3, 1), (5, 0), (5, 2)]
    spied = replace(encode, read_image=lambda path: reads.append(path) or encode.read_image(path))
    tokens = spied.tokens_of(trainer.model.base, source, asked)
    assert reads == [source[place].impath for place in (0, 3, 5)]
    (whole,) = encode(trainer.model.base, source, 3, "")
    expected = whole.tokens.unflatten(0, (SHOTS, 3))[[p for p, _ in asked], [v for _, v in asked]]
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)


# What is said of pairs


def test_a_test_encodes_no_pair_that_its_training_met(files, tmp_path, monkeypatch):  # noqa: F811
    """Nor any of classes that the bank does not know; and the answers are the ones of the training run."""
    build(files, tmp_path / "run", *OFF, *EXPERTS).train()
    trainers = [
        build(files, tmp_path / half, *OFF, *EXPERTS, "DATASET.SUBSAMPLE_CLASSES", half) for half in ("base", "new")
    ]
    monkeypatch.setattr(PairFeatures, "_encode", None)
    for trainer in trainers:
        trainer.load_model(str(tmp_path / "run"), epoch=2)
        trainer.test()
    assert np.array_equal(read(tmp_path / "base")[1]["probs"], read(tmp_path / "run")[1]["probs"])
    new = read(tmp_path / "new")[1]
    assert np.array_equal(new["probs"], new["base_probs"])
