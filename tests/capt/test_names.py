"""Names that look wrong are said in one line, and right ones are not suspected."""

import json

import tiny_capt
import torch

from trainers.capt.bank.confusion_bank import ConfusionBank
from trainers.capt.bank.names import suspicious_names

NAMES = ["crab", "sunflower", "cup", "mug", "vase", "jug", "otter", "fox"]


def counts(*cells):
    table = torch.zeros(len(NAMES), len(NAMES))
    for label, taken_for, number in cells:
        table[label, taken_for] = number
    return table


def views(number=16):
    return torch.full((len(NAMES),), number)


def test_swapped_names():
    lines = suspicious_names(NAMES, counts((0, 1, 15), (1, 0, 9)), views())
    assert lines == ["crab and sunflower: names swapped? Most of each are taken for the other"]


def test_one_way_confusion_is_no_swap():
    assert suspicious_names(NAMES, counts((0, 1, 15 - 1), (2, 3, 9), (3, 2, 8)), views()) == []


def test_names_that_are_never_taken_are_listed_once():
    cells = [(label, 7, 16) for label in range(7)]
    (line,) = suspicious_names(NAMES, counts(*cells), views())
    start = "crab, sunflower, cup, mug, vase and 2 more: hardly any image is taken for its own class"
    assert line.startswith(start)


def test_a_swapped_pair_is_not_named_twice():
    assert len(suspicious_names(NAMES, counts((0, 1, 16), (1, 0, 16)), views())) == 1


def test_few_views_say_nothing():
    assert suspicious_names(NAMES, counts((0, 1, 3), (1, 0, 3)), views(3)) == []


def test_a_stored_bank_keeps_what_it_says(tmp_path, small_clip):
    bank = tiny_capt.make_bank(tiny_capt.make_base(small_clip))
    bank.notes = ["cup and jug: names swapped?"]
    bank.save(tmp_path)
    assert ConfusionBank.load(tmp_path).notes == bank.notes
    assert json.loads((tmp_path / "confusion_bank.json").read_text())["notes"] == bank.notes
    assert bank.to("cpu").notes == bank.notes
