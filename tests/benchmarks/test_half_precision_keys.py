"""Neighbours by rounded keys: a bank that rounding leaves alone, and one whose neighbours it swaps."""

import half_precision_keys as half
import torch
from bank import random_bank


def test_a_bank_far_from_ties_keeps_its_neighbours():
    assert half.compare(random_bank(60, 6, 16, "cpu"), torch.float32) == (1.0, 1.0, 0.0)


def test_keys_that_rounding_swaps_are_counted_and_come_back():
    bank = random_bank(400, 4, 16, "cpu")
    keys = bank.filed.keys.clone()
    as_list, as_set, most = half.compare(bank, torch.bfloat16)
    assert as_list < as_set <= 1.0  # 400 entries crowd in 16 dimensions: some cosines are closer than a rounding
    assert 0 < most < 0.02
    assert torch.equal(bank.filed.keys, keys)


def test_partners_are_the_nearest_other_classes():
    bank = random_bank(60, 8, 16, "cpu")
    cls, label, partners, index = half.queries(bank)
    assert cls.shape == (60, 16)
    assert partners.shape == (60, 5)
    assert not (partners == label.unsqueeze(1)).any()
    assert torch.equal(index, torch.arange(60))


def test_a_run_is_read_from_its_folder(tmp_path, capsys):
    random_bank(60, 6, 16, "cpu").save(tmp_path)
    assert half.main([str(tmp_path)]) == 0
    assert "float16" in capsys.readouterr().out
