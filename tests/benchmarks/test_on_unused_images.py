"""The benchmarks on training images that were not drawn as shots, each as a whole on a folder of noise."""

import math

import adapters_on_unused_images
import bank_without_training
import drawn
import experts_by_held_out_classes
import likeness
import pytest
import torch
import what_transfers
from run_features import rows_of, tokens_of
from unused_images import figures, mean_rows

from trainers.capt.backbone import layout
from trainers.capt.run.feature_cache import ViewBatch


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Arguments for four base classes and one unused image of each, too few for any pair to be confusable."""
    folder = tmp_path_factory.mktemp("noise")
    drawn.draw(folder / "images", drawn.class_names(8), num_train=4)
    clip = drawn.store_clip(folder / "clip.pt")
    where = ["--root", str(folder / "images"), "--dataset", "Folder", "--backbone", str(clip)]
    return [*where, "--shots", "3", "--seeds", "1", "2"]


def table_of(out):
    """The cells of the lines of a printed table, without its head."""
    lines = [line for line in out.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_figures_worked_by_hand():
    labels, before = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 0, 1, 2])
    after = torch.tensor([0, 1, 0, 1, 0, 2])  # two of three errors resolved, one introduced
    found = figures(labels, before, after, 3)
    assert found == pytest.approx((400 / 6, 100 * (2 / 3 + 1 / 2 + 1) / 3, 66.67, 33.33, 33.33))


def test_without_a_confusable_pair_there_is_no_share():
    labels = torch.tensor([0, 1])
    assert figures(labels, labels.flip(0), labels, 2) == (100.0, 100.0, None, None, None)


def test_means_are_over_the_seeds_that_have_a_figure():
    rows = mean_rows({("a",): [(1.0, None), (3.0, 4.0)], ("b", 2): [(5.0, None), (6.0, None)]})
    assert rows[0] == ["a", 2.0, 4.0]
    assert rows[1][:3] == ["b", 2, 5.5]
    assert math.isnan(rows[1][3])


def _rows(**others):
    number = torch.arange(4)
    held = {"z": torch.eye(4), "cls": torch.eye(4), "tokens": torch.ones(4, 2, 3), **others}
    return ViewBatch(**held, label=number, index=number, view=number)


def test_rows_are_taken_of_whatever_is_there():
    some = rows_of(_rows(tokens=None), torch.tensor([True, False, True, False]))
    assert some.tokens is None
    assert some.label.tolist() == [0, 2]
    assert rows_of(_rows(), torch.tensor([3, 1])).tokens.shape == (2, 2, 3)


@pytest.mark.parametrize("missing", ["cls", "tokens"])
def test_a_resnet_is_refused_in_a_line(missing):
    with pytest.raises(ValueError, match=r"a ResNet has no patch tokens.*--backbone"):
        tokens_of(_rows(**{missing: None}))


def test_the_bank_without_training(words, capsys):
    assert bank_without_training.main(words) == 0
    rows = table_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["zero-shot CLIP", *(v.name for v in bank_without_training.variants())]
    assert all(row[3:] == ["nan"] * 3 for row in rows)
    assert all(0 <= float(row[1]) <= 100 for row in rows)


def test_one_change_at_a_time():
    default, *others = bank_without_training.variants()
    for variant in others:
        changed = {name for name, value in vars(variant).items() if value != getattr(default, name)}
        assert len(changed - {"name"}) <= (2 if "," in variant.name else 1), variant
    assert {v.num_representatives for v in others} >= {2, 4, 16, 64}


def test_the_adapters(words, capsys):
    grid = ["--alpha", "1", "2", "--beta", "3", "--rate", "1e-3", "--epochs", "1", "--ratio", "0.2", "0.6"]
    assert adapters_on_unused_images.main([*words, *grid]) == 0
    rows = [row for row in table_of(capsys.readouterr().out) if row[0] not in ("ALPHA", "LR")]
    keys = [(row[0], row[1]) for row in rows if row[0] != "zero-shot"]
    assert keys == [("1.0", "3"), ("2.0", "3")] * 2 + [("0.001", "1"), ("0.001", "0.2"), ("0.001", "0.6")]
    before = {tuple(row[2:]) for row in rows if row[0] == "zero-shot"}
    assert len(rows) == len(keys) + len(adapters_on_unused_images.METHODS)
    assert len(before) == 1  # the same in all tables


def test_every_candidate_is_built_with_its_own_values(words):
    """A grid's adapters are built one by one; none may get the values of another."""
    args = adapters_on_unused_images.arguments([*words, "--ratio", "0.2", "0.6", "--rate", "1e-3", "--alpha", "1", "2"])
    bench = adapters_on_unused_images.Bench(args, 32, None, 1, None)
    built = []
    bench.parts = lambda: (["a", "b"], torch.eye(2).repeat(1, 16), torch.tensor(1.0))
    bench.shot_cache = lambda alpha, beta, is_trained=False: (alpha, beta, is_trained)
    bench.trained = lambda method, build, *rest, **optimizer: built.append(build()) or built[-1]
    assert [a.ratio for _, a in bench.candidates("CLIPAdapter")] == [0.2, 0.6]
    assert [a for _, a in bench.candidates("TipAdapterF")] == [
        (*key, True) for key, _ in bench.candidates("TipAdapter")
    ]


@pytest.mark.slow
def test_likeness(words, capsys):
    before = layout.CELLS, layout.NUMBERS, likeness.gain_module.ERRORS
    assert likeness.main(words) == 0
    assert before == (layout.CELLS, layout.NUMBERS, likeness.gain_module.ERRORS)
    rows = table_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == [v.name for v in likeness.variants()]
    assert all(0 <= float(row[-1]) <= likeness.LARGEST_GAIN for row in rows)


@pytest.mark.slow
def test_experts_by_held_out_classes(words, capsys):
    short = ["--halvings", "1", "--epochs", "1", "--views", "2", "--betas", "0.1", "--keeps", "0", "--seeds", "1"]
    assert experts_by_held_out_classes.main([*words, *short]) == 0
    held_out, known = capsys.readouterr().out.split("\n\n")[-2:]
    variants = experts_by_held_out_classes.variants([0.0])
    assert [row[3] for row in table_of(held_out)] == [v.episodes for v in variants]
    known = [row[3:5] for row in table_of(known)]
    on_top = [["shift, corrections, experts", beta] for beta in ("0", "0.1")]
    assert known == [["base model", ""], ["shift", ""], *on_top] * sum(v.episodes == "no" for v in variants)


@pytest.mark.slow
def test_what_transfers(words, capsys, monkeypatch):
    monkeypatch.setattr(what_transfers, "forms_beside", lambda penalty: what_transfers.votes(penalty))
    assert what_transfers.main([*words, "--seeds", "1"]) == 0
    rows = table_of(capsys.readouterr().out)
    assert rows[0][:2] == ["shift v", "base model"]
    assert len(rows) == 1 + len(what_transfers.WIDTHS) + 4 + 4
