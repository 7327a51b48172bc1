"""Which images are alike: the plain cosine, the whitened one by hand, and banks of either kind."""

import json

import pytest
import tiny_capt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize

from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bank.likeness import Likeness

# Two classes whose images differ along the second axis alone; their common mean is the origin.
TOKENS = torch.tensor([[2.0, 1], [2, -1], [-2, 1], [-2, -1]])
LABEL = torch.tensor([0, 0, 1, 1])


def test_at_shrinkage_one_it_is_the_plain_cosine_of_centred_tokens():
    tokens = torch.randn(7, 5, generator=tiny_capt.generator()) + 3
    query = torch.randn(4, 5, generator=tiny_capt.generator(1))
    likeness = Likeness(tokens, torch.arange(7) % 3, 3, 1.0)
    assert torch.equal(likeness.keys(query), normalize(query - tokens.mean(dim=0), dim=-1))


def test_a_case_by_hand():
    """The scatter within the classes is diag(0, 1), its mean size 1/2.

    Shrunk by 1/5 it is 4/5 diag(0, 1) + 1/5 1/2 I = diag(1/10, 9/10), so the first axis counts sqrt(10), the second
    sqrt(10 / 9): three times less. A query (1, 3) is (3, 3) then, as near to (1, 0) as to (0, 1), though the plain
    cosine finds it three times nearer to the latter.
    """
    likeness = Likeness(TOKENS, LABEL, 2, 0.2)
    torch.testing.assert_close(likeness.keys(torch.tensor([[1.0, 3]])), torch.tensor([[0.5**0.5, 0.5**0.5]]))
    torch.testing.assert_close(likeness.keys(torch.eye(2)), torch.eye(2))
    plain = Likeness(TOKENS, LABEL, 2, 1.0).keys(torch.tensor([[1.0, 3]]))
    torch.testing.assert_close(plain, torch.tensor([[1.0, 3]]) / 10**0.5)


def test_the_less_it_is_shrunk_the_less_the_scatter_counts():
    query = torch.tensor([[1.0, 1]])
    shares = [Likeness(TOKENS, LABEL, 2, shrinkage).keys(query)[0, 0] for shrinkage in (1.0, 0.5, 0.1, 0.01)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.99


def test_one_entry_a_class_has_no_scatter_and_leaves_the_plain_cosine():
    tokens, query = tiny_capt.unit(3, 6), tiny_capt.unit(4, 6, seed=1)
    whitened, plain = (Likeness(tokens, torch.arange(3), 3, shrinkage).keys(query) for shrinkage in (0.3, 1.0))
    torch.testing.assert_close(whitened, plain)


def test_a_bank_without_an_entry_has_keys_all_the_same():
    keys = Likeness(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 3, 0.3).keys(torch.ones(2, 4))
    torch.testing.assert_close(keys, torch.full((2, 4), 0.5))


# In a bank


def bank_of(shrinkage):
    """Twelve confused images of three classes, whose class tokens differ most along the first two axes."""
    source = tiny_capt.generator(4)
    label = torch.arange(12) % 3
    probs = torch.eye(3)[(label + 1) % 3]
    cls = torch.randn(12, 5, generator=source) * torch.tensor([9.0, 9, 1, 1, 1]) + torch.eye(5)[label]
    views = JudgedViews.of(probs, label, tiny_capt.unit(12, 4), cls=cls)
    return ConfusionBank.build(["cup", "jug", "vase"], [f"{i}.png" for i in range(12)], [views], shrinkage=shrinkage)


def nearest(bank):
    query = torch.randn(6, 5, generator=tiny_capt.generator(5))
    target, partners = torch.zeros(6, dtype=torch.long), torch.tensor([[1, 2]]).expand(6, -1)
    return bank.retrieve(query, target, partners, torch.full((6,), -1), 5)


def assert_same(found, expected):
    assert torch.equal(found.entry, expected.entry)
    assert torch.equal(found.similarity, expected.similarity)


def test_the_shrinkage_decides_what_is_retrieved():
    assert not torch.equal(nearest(bank_of(0.05)).entry, nearest(bank_of(1.0)).entry)


@pytest.mark.parametrize("shrinkage", [0.05, 1.0])
def test_a_stored_bank_retrieves_the_same(tmp_path, shrinkage):
    bank = bank_of(shrinkage)
    bank.save(tmp_path)
    loaded = ConfusionBank.load(tmp_path)
    assert loaded.shrinkage == shrinkage
    assert_same(nearest(loaded), nearest(bank))
    assert_same(nearest(loaded.to("cpu")), nearest(bank))


def test_two_banks_in_one_are_compared_as_one(tmp_path):
    both = bank_of(0.05).merge(bank_of(0.05))
    assert both.shrinkage == 0.05
    torch.testing.assert_close(both.likeness.whitening, bank_of(0.05).likeness.whitening)


def test_a_bank_of_format_2_is_compared_by_the_plain_cosine(tmp_path):
    path = bank_of(0.05).save(tmp_path)
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["confusion_bank"])
    del description["shrinkage"]
    description["format"] = 2
    state = {name: value.contiguous() for name, value in bank_of(0.05).state_dict().items()}
    save_file(state, path, metadata={"confusion_bank": json.dumps(description)})
    old = ConfusionBank.load(tmp_path)
    assert old.shrinkage == 1.0
    assert_same(nearest(old), nearest(bank_of(1.0)))
