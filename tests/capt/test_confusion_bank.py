"""The bank: counts and entries by hand, retrieval, classes and images by name, storing."""

import json
import os

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize

from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews, confusion_intensity
from trainers.capt.bank.files import FILE, BankMismatchError

NAMES = ["cup", "jug", "vase"]


def judged(rows, label, feature=None, **more):
    feature = torch.eye(len(rows)) if feature is None else feature
    return JudgedViews.of(torch.tensor(rows), torch.tensor(label), feature, **{"cls": feature, **more})


@pytest.fixture
def hand_bank():
    """Six images; five are confused: cells (0,1) twice, (1,0) twice, (2,0) once. Their class tokens' mean is (3, 1)."""
    rows = [
        [0.2, 0.7, 0.1],
        [0.1, 0.6, 0.3],
        [0.5, 0.4, 0.1],
        [0.9, 0.05, 0.05],
        [0.6, 0.1, 0.3],
        [0.8, 0.1, 0.1],
    ]
    cls = torch.tensor([[1.0, 0], [1, 1], [-1, 2], [-1, 0], [0, -3], [1, -1]]) + torch.tensor([3.0, 1])
    views = judged(rows, [0, 0, 1, 1, 2, 0], cls=cls)
    return ConfusionBank.build(NAMES, [f"{i}.png" for i in range(6)], [views], fingerprint={"seed": 1})


def test_hard_counts_and_entries_by_hand(hand_bank):
    assert hand_bank.counts.tolist() == [[0, 2, 0], [2, 0, 0], [1, 0, 0]]
    entries = hand_bank.entries
    assert entries.label.tolist() == [0, 0, 1, 1, 2, -1]  # the last row is padding
    assert entries.pseudo_label.tolist() == [1, 1, 0, 0, 0, -1]
    assert entries.index.tolist() == [0, 1, 2, 3, 4, -1]
    torch.testing.assert_close(entries.p_label, torch.tensor([0.2, 0.1, 0.4, 0.05, 0.3, 0]))
    torch.testing.assert_close(entries.p_pseudo, torch.tensor([0.7, 0.6, 0.5, 0.9, 0.6, 0]))
    # c = 2 p2 / (p1 + p2), e.g. 2 * 0.2 / 0.9
    expected = torch.tensor([0.4 / 0.9, 0.6 / 0.9, 0.8 / 0.9, 0.1 / 0.95, 0.6 / 0.9, 0])
    torch.testing.assert_close(entries.intensity, expected)
    assert len(hand_bank) == 5


def test_soft_counts_by_hand():
    views = judged([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [0, 0])
    bank = ConfusionBank.build(NAMES, ["a", "b"], [views], soft_counts=True)
    torch.testing.assert_close(bank.counts, torch.tensor([[0, 1.0, 0.2], [0, 0, 0], [0, 0, 0]]))
    assert len(bank) == 1  # entries are the confused views all the same


def test_batches_add_up(hand_bank):
    rows = torch.rand(12, 3, generator=tiny_capt.generator()).softmax(-1)
    label, feature = torch.arange(12) % 3, tiny_capt.unit(12, 4)
    whole = ConfusionBank.build(NAMES, list("abcdefghijkl"), [JudgedViews.of(rows, label, feature)])
    parts = [
        JudgedViews.of(rows[s], label[s], feature[s], index=torch.arange(12)[s])
        for s in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    split = ConfusionBank.build(NAMES, list("abcdefghijkl"), parts)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), split.state_dict().values(), strict=True))


def test_bad_views_are_refused():
    with pytest.raises(ValueError, match="judge knows 2 classes, the bank 3"):
        ConfusionBank.build(NAMES, ["a"], [judged([[0.5, 0.5]], [0])])
    with pytest.raises(ValueError, match="at least one view"):
        ConfusionBank.build(NAMES, ["a"], [])


def test_intensity():
    probs = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.6, 0.3, 0.1]])
    torch.testing.assert_close(confusion_intensity(probs), torch.tensor([0, 1, 2 * 0.3 / 0.9]))
    assert confusion_intensity(torch.ones(4, 1)).tolist() == [0, 0, 0, 0]  # one class: nothing to confuse


# Retrieval


def retrieve(bank, direction, target, partners, own=-1, k=2):
    """For a query whose class token lies in this direction from the bank's mean."""
    cls = bank.likeness.center + torch.tensor([direction])
    return bank.retrieve(cls, torch.tensor([target]), torch.tensor([partners]), torch.tensor([own]), k)


def test_retrieval_by_hand(hand_bank):
    found = retrieve(hand_bank, [1.0, 0.0], 0, [1])  # pair {0, 1}: entries 0 to 3 with cosines 1, .71, -.45, -1
    assert found.entry.tolist() == [[0, 1]]
    torch.testing.assert_close(found.similarity, torch.tensor([[1, 0.5**0.5]]))
    assert found.valid.all()
    assert retrieve(hand_bank, [1.0, 0.0], 1, [0]).entry.tolist() == [[0, 1]]  # pairs have no order
    both = retrieve(hand_bank, [0.0, -1.0], 0, [1, 2])
    assert both.entry[0, 0] == 4  # through the second pair {0, 2}


def test_near_misses_are_entries_but_no_errors():
    rows = [[0.2, 0.7, 0.1], [0.5, 0.2, 0.3], [0.9, 0.06, 0.04]]  # c of the right ones: 0.6 / 0.8 and 0.12 / 0.96
    views = judged(rows, [0, 0, 0], tiny_capt.unit(3, 2))
    bank = ConfusionBank.build(NAMES, list("abc"), [views], near_misses=0.7)
    assert bank.entries.index.tolist() == [0, 1, -1]
    assert bank.entries.rival.tolist() == [1, 2, -1]  # the pseudo-label of the error, the runner-up of the right view
    assert bank.counts.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert (len(bank), bank.num_confused) == (2, 1)
    assert retrieve(bank, [1.0, 0.0], 2, [0]).entry[0].tolist() == [1, 2]
    assert len(ConfusionBank.build(NAMES, list("abc"), [views], near_misses=0.0)) == 3


def test_by_label_the_rival_does_not_matter(hand_bank):
    query = torch.tensor([[1.0, 0]])
    args = (query, torch.tensor([2]), torch.tensor([[0]]), torch.tensor([-1]), 9)
    assert sorted(hand_bank.retrieve(*args).entry[0].tolist()) == [4] + [5] * 8  # {2, 0} only; 5 is padding
    by_label = hand_bank.retrieve(*args, by_label=True)
    assert sorted(by_label.entry[0][by_label.valid[0]].tolist()) == [0, 1, 4]  # and what is 0 and torn with 1


def test_own_image_is_left_out_in_every_view():
    rows = [[0.2, 0.7, 0.1]] * 3
    views = judged(rows, [0, 0, 0], tiny_capt.unit(1, 2).expand(3, -1), index=torch.tensor([0, 0, 1]))
    bank = ConfusionBank.build(NAMES, ["a", "b"], [views])
    found = bank.retrieve(bank.entries.cls[:1], *map(torch.tensor, ([0], [[1]], [0])), 3)
    assert found.entry.tolist() == [[2, 3, 3]]
    assert found.valid.tolist() == [[True, False, False]]


def test_image_listed_twice_is_one_image():
    views = judged([[0.2, 0.7, 0.1]] * 3, [0, 0, 0], tiny_capt.unit(3, 2))
    bank = ConfusionBank.build(NAMES, ["a", "b", "a"], [views])
    own = bank.image_index(["a", "b", "elsewhere"])
    assert own.tolist() == [0, 1, -1]
    found = bank.retrieve(tiny_capt.unit(3, 2), torch.zeros(3).long(), torch.ones(3, 1).long(), own, 3)
    assert sorted(found.entry[0][found.valid[0]].tolist()) == [1]  # neither entry of a
    assert sorted(found.entry[1][found.valid[1]].tolist()) == [0, 2]
    assert sorted(found.entry[2][found.valid[2]].tolist()) == [0, 1, 2]


def test_more_places_than_entries(hand_bank):
    found = retrieve(hand_bank, [1.0, 0.0], 0, [2], k=9)
    assert found.entry.shape == (1, 9)
    assert found.valid.tolist() == [[True] + [False] * 8]
    assert found.entry[0, 1:].tolist() == [5] * 8  # the padding row
    assert found.similarity[0, 1:].tolist() == [0] * 8


def test_empty_bank_and_unknown_classes(hand_bank):
    empty = ConfusionBank.build(NAMES, ["a"], [judged([[1.0, 0, 0]], [0], torch.ones(1, 2))])
    assert len(empty) == 0
    for bank, target, partners in ((empty, 0, [1, 2]), (hand_bank, -1, [0, 1]), (hand_bank, 0, [-1, -1])):
        found = retrieve(bank, [1.0, 0.0], target, partners)
        assert not found.valid.any()
        assert (found.entry == len(bank)).all()
        assert torch.isfinite(found.similarity).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 4), st.integers(1, 6))
def test_retrieval_against_a_loop(seed, num_classes, num_pairs, k):
    source = tiny_capt.generator(seed)
    rows = torch.rand(15, num_classes, generator=source).softmax(-1)
    label = torch.randint(num_classes, (15,), generator=source)
    index = torch.randint(8, (15,), generator=source)
    views = JudgedViews.of(rows, label, tiny_capt.unit(15, 4), index=index, cls=tiny_capt.unit(15, 6, seed=seed))
    bank = ConfusionBank.build([str(c) for c in range(num_classes)], [str(i) for i in range(8)], [views])
    cls = tiny_capt.unit(4, 6, seed=seed + 1)
    target = torch.randint(-1, num_classes, (4,), generator=source)
    partners = torch.randint(-1, num_classes, (4, num_pairs), generator=source)
    own = torch.randint(-1, 8, (4,), generator=source)
    found = bank.retrieve(cls, target, partners, own, k)
    e = bank.entries
    mean = e.cls[:-1].double().mean(0)

    def alike(b, m):
        return float(normalize(cls[b].double() - mean, dim=-1) @ normalize(e.cls[m].double() - mean, dim=-1))

    for b in range(4):
        fits = [
            m
            for m in range(len(bank))
            if any(
                {int(e.label[m]), int(e.pseudo_label[m])} == {int(target[b]), int(j)}
                for j in partners[b]
                if j >= 0 and target[b] >= 0
            )
            and int(e.index[m]) != int(own[b])
        ]
        fits.sort(key=lambda m: -alike(b, m))
        got = found.entry[b][found.valid[b]].tolist()
        assert len(got) == min(k, len(fits))
        torch.testing.assert_close(
            found.similarity[b][found.valid[b]].tolist(), [alike(b, m) for m in fits[:k]], atol=1e-5, rtol=0
        )


# Names


def test_other_classes(hand_bank):
    names = ["kite", "jug", "cup"]
    assert hand_bank.class_index(names).tolist() == [-1, 1, 0]
    assert hand_bank.counts_for(names).tolist() == [[0, 0, 0], [0, 0, 2], [0, 2, 0]]
    assert hand_bank.counts_for(NAMES).tolist() == hand_bank.counts.tolist()


def test_equal_names_match_in_order():
    bank = ConfusionBank.build(["crane", "crane"], ["a"], [judged([[0.1, 0.9]], [0])])
    assert bank.class_index(["crane", "crane", "crane"]).tolist() == [0, 1, -1]


def test_top_pairs(hand_bank):
    assert hand_bank.top_pairs() == [("cup", "jug", 4.0), ("cup", "vase", 1.0)]
    assert hand_bank.top_pairs(1) == [("cup", "jug", 4.0)]


# Storing


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_round_trip(bank, tmp_path):
    bank.fingerprint = {"seed": 3}
    path = bank.save(tmp_path)
    for place in (path, tmp_path):
        loaded = ConfusionBank.load(place)
        assert same(bank, loaded)
        assert (loaded.classnames, loaded.paths, loaded.fingerprint) == (bank.classnames, bank.paths, {"seed": 3})
    again = ConfusionBank.from_state_dict(bank.state_dict(), bank.classnames, bank.paths)
    assert same(bank, again)
    assert again.entries.label[-1] == -1
    assert json.loads(path.with_suffix(".json").read_text())["entries"] == len(bank)
    assert sorted(os.listdir(tmp_path)) == ["confusion_bank.json", "confusion_bank.safetensors"]


def test_merge(hand_bank):
    both = hand_bank.merge(hand_bank)
    assert len(both) == 2 * len(hand_bank)
    assert torch.equal(both.counts, 2 * hand_bank.counts)
    assert (both.entries.label[:-1] >= 0).all()  # the padding row of the first is not in the middle
    other = ConfusionBank(["x", "y", "z"], hand_bank.paths, hand_bank.entries, hand_bank.counts)
    with pytest.raises(BankMismatchError, match="different classes or images cannot be merged"):
        hand_bank.merge(other)


def test_failed_save_leaves_the_old_file(hand_bank, tmp_path, monkeypatch):
    path = hand_bank.save(tmp_path)
    before = path.read_bytes()

    def break_off(tensors, temporary, metadata):
        with open(temporary, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("trainers.capt.bank.files.save_file", break_off)
    with pytest.raises(KeyboardInterrupt):
        hand_bank.merge(hand_bank).save(tmp_path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["confusion_bank.json", "confusion_bank.safetensors"]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="No confusion bank at"):
        ConfusionBank.load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "part_missing", "no_json"])
def test_damaged_file(hand_bank, tmp_path, damage):
    path = hand_bank.save(tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = {k: v.contiguous() for k, v in hand_bank.state_dict().items()}
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "text":
        path.write_text("not a bank")
    elif damage == "foreign":
        save_file({"weight": torch.ones(2)}, path)
    elif damage == "part_missing":
        save_file({k: v for k, v in state.items() if k != "label"}, path, metadata=metadata)
    else:
        save_file(state, path, metadata={"confusion_bank": "{"})
    with pytest.raises(ValueError, match="is not a confusion bank or is damaged .*; delete it and train") as caught:
        ConfusionBank.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "fix"), [(7, "update this code"), (1, "train CAPT again")])
def test_other_formats(hand_bank, tmp_path, monkeypatch, number, fix):
    monkeypatch.setattr("trainers.capt.bank.files.FORMAT", number)
    hand_bank.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"has format {number}, this code reads 2 to 4; {fix}"):
        ConfusionBank.load(tmp_path / FILE)


def test_another_runs_bank_is_refused(hand_bank):
    hand_bank.check({"seed": 1})
    with pytest.raises(
        BankMismatchError, match="seed: bank has 1, this run has 2; shots: bank has None, this run has 16"
    ):
        hand_bank.check({"seed": 2, "shots": 16})
