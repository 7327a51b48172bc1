"""Retrieval by filed keys: the answers of a comparison with all entries, equals in order, in bounded memory."""

import weakref

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.capt.bank import retrieval
from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bank.retrieval import FiledKeys, _rank, _unranked

WAYS = ("whole", "by class", "gathered")


def make_bank(cls, label, rival, num_classes, index=None):
    """A bank with these entries, their keys the class tokens themselves."""
    probs = torch.full((len(label), num_classes), 0.1)
    probs.scatter_(1, label[:, None], 0.3).scatter_(1, rival[:, None], 0.5)
    index = torch.arange(len(label)) if index is None else index
    views = JudgedViews.of(probs, label, cls, cls=cls, index=index)
    paths = [str(i) for i in range(len(label))]
    bank = ConfusionBank.build([f"c{i}" for i in range(num_classes)], paths, [views])
    bank.likeness.keys = lambda tokens: tokens.float()
    bank.filed = FiledKeys(cls, label, num_classes, bank.likeness.keys)
    return bank


def go(bank, way, *query, max_megabytes=256.0):
    """Retrieve in one of the three ways in which similarities are made."""
    bank.filed.is_gathered = way == "gathered"
    with pytest.MonkeyPatch.context() as patch:
        if way != "whole":
            patch.setattr(retrieval, "FEW", -1)
        return bank.retrieve(*query, max_megabytes=max_megabytes)


def every_entry(bank, cls, target, partners, own, k, by_label):
    """Brute force as before there were filed keys: a mask over all entries; equals in the order of the entries."""
    e = {name: value[:-1] for name, value in bank.entries.named().items()}
    mined = torch.cat([target[:, None], partners], dim=1)
    similarity = cls @ e["cls"].t()
    for b in range(len(cls)):
        member = {int(c) for c in mined[b] if c >= 0}
        for m in range(len(bank)):
            label, rival, goal = int(e["label"][m]), int(e["rival"][m]), int(target[b])
            fits = label in member if by_label else {label, rival} <= member and goal in (label, rival)
            if not fits or (own[b] >= 0 and own[b] == e["index"][m]):
                similarity[b, m] = -torch.inf
    top, entry = similarity.sort(dim=1, descending=True, stable=True)
    top, entry = top[:, :k], entry[:, :k]
    valid = top > -torch.inf
    missing = k - entry.shape[1]
    pad = torch.nn.functional.pad
    entry = pad(entry.masked_fill(~valid, len(bank)), (0, missing), value=len(bank))
    return entry, pad(valid, (0, missing)), pad(top.masked_fill(~valid, 0), (0, missing))


def queries(source, num, num_classes, num_pairs, num_images):
    """Any classes, also unknown ones, one named twice, or the target among the partners."""
    target = torch.randint(-1, num_classes, (num,), generator=source)
    partners = torch.randint(-1, num_classes, (num, num_pairs), generator=source)
    return target, partners, torch.randint(-1, num_images, (num,), generator=source)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(WAYS),
    st.booleans(),
    st.integers(2, 6),
    st.integers(0, 40),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.0005, 0.002, 256.0]),
)
def test_as_brute_force_answers_ties_included(seed, way, by_label, num_classes, num_entries, k, megabytes):
    """Keys and queries of few whole numbers: dot products are exact, and many are equal."""
    source = tiny_capt.generator(seed)
    label = torch.randint(num_classes, (num_entries,), generator=source)
    if seed % 3 == 0:
        label = label * 0  # one class holds all there is
    rival = (label + torch.randint(1, num_classes, (num_entries,), generator=source)) % num_classes
    cls = torch.randint(-1, 2, (num_entries, 3), generator=source).float()
    bank = make_bank(cls, label, rival, num_classes, torch.arange(num_entries) // 2)
    query = torch.randint(-1, 2, (5, 3), generator=source).float()
    asked = (query, *queries(source, 5, num_classes, 3, max(1, num_entries // 2)), k, by_label)
    found = go(bank, way, *asked, max_megabytes=megabytes)
    entry, valid, similarity = every_entry(bank, *asked)
    assert torch.equal(found.valid, valid)
    assert torch.equal(found.similarity, similarity)
    assert torch.equal(found.entry, entry)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("by_label", [True, False])
def test_as_brute_force_answers_on_real_valued_tokens(way, by_label):
    source = tiny_capt.generator(3)
    label = torch.randint(20, (600,), generator=source)
    rival = (label + torch.randint(1, 20, (600,), generator=source)) % 20
    bank = make_bank(tiny_capt.unit(600, 32), label, rival, 20)
    asked = (tiny_capt.unit(50, 32, seed=1), *queries(source, 50, 20, 4, 600), 8, by_label)
    found = go(bank, way, *asked, max_megabytes=0.05)
    entry, valid, similarity = every_entry(bank, *asked)
    assert torch.equal(found.entry, entry)
    assert torch.equal(found.valid, valid)
    torch.testing.assert_close(found.similarity, similarity)


def test_no_query_and_no_class():
    bank = make_bank(torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([1, 0]), 2)
    none = torch.zeros(0, dtype=torch.long)
    assert bank.retrieve(torch.zeros(0, 3), none, none.view(0, 2), none, 4).entry.shape == (0, 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(0, 2**31)), min_size=1, max_size=30))
def test_ranks_sort_by_similarity_and_then_by_entry(rows):
    similarity, entry = torch.tensor([s for s, _ in rows]), torch.tensor([e for _, e in rows])
    order = _rank(similarity, entry).argsort(descending=True).tolist()
    assert [(rows[i][0], rows[i][1]) for i in order] == sorted(rows, key=lambda row: (-row[0], row[1]))
    back_entry, back_similarity = _unranked(_rank(similarity, entry))
    assert torch.equal(back_entry, entry)
    assert torch.equal(back_similarity, similarity)


def storages(values):
    if isinstance(values, torch.Tensor):
        return [values.untyped_storage()]
    return [s for value in values for s in storages(value)] if isinstance(values, tuple | list) else []


class LivingBytes(TorchDispatchMode):
    """The most bytes that storages made under it held at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        known = {storage._cdata for storage in storages([args, list(kwargs.values())])}  # a view makes no new one
        for storage in storages(out):
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return out

    def _count(self, num):
        self.now += num
        self.most = max(self.most, self.now)


def test_living_bytes_by_hand():
    with LivingBytes() as counted:
        a = torch.zeros(1000)
        b = a[:10] + 1
        del a
        b.view(2, 5).add_(1)
    assert (counted.most, counted.now) == (4040, 40)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", ["balanced", "one large class"])
def test_memory_is_bounded(way, label):
    source = tiny_capt.generator(1)
    size = retrieval.FEW if way == "whole" else 6000
    of = torch.randint(50, (size,), generator=source)
    of = of if label == "balanced" else of * (torch.arange(size) % 10 == 0)
    bank = make_bank(tiny_capt.unit(size, 64), of, (of + 1) % 50, 50)
    asked = (tiny_capt.unit(200, 64, seed=1), *queries(source, 200, 50, 5, size), 8, True)
    with LivingBytes() as plenty:
        whole = go(bank, way, *asked, max_megabytes=1024)
    with LivingBytes() as little:
        pieces = go(bank, way, *asked, max_megabytes=1)
    assert torch.equal(whole.entry, pieces.entry)
    answer = 3 * 8 * 200 * 8 + asked[0].nbytes
    assert little.most < 2**20 + 2 * answer
    assert plenty.most > 3 * little.most
