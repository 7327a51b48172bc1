"""The features of mined pairs: as a dict would keep them, encoded once, where they can matter, bounded, by name."""

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_capt import CLASSES, NEW_CLASSES, encode, images, make_model, serve, stir

from trainers.capt.bank.pair_features import PairFeatures
from trainers.capt.bank.prompt_library import PromptLibrary
from trainers.capt.method import start
from trainers.capt.method.experts import Expert
from trainers.capt.method.start import meet_pairs_of_bank, start_semantic_experts
from trainers.capt.run.serving import keep_pair_features, read_pair_features

DIM = 4
NAMES = [f"c{i}" for i in range(7)]


def feature(t, j, side):
    """A feature that says which pair and side it belongs to."""
    return torch.tensor([float(side), float(t[1:]), float(j[1:]), 1.0])


class Encoder:
    """Counts what it is asked for."""

    def __init__(self):
        self.pairs, self.titles = [], []

    def __call__(self, pairs, title=None):
        self.pairs += pairs
        self.titles.append(title)
        sides = (torch.stack([feature(t, j, side) for t, j in pairs]) for side in (1, 2))
        return *sides, {"drawn": len(pairs)}


def store(max_rows=1000, names=NAMES):
    return PairFeatures(names, Encoder(), DIM, max_rows * 2 * 4 * DIM / 2**30 + 1e-12)


def ask(pairs, target, partners, wanted=None):
    target, partners = torch.tensor(target), torch.tensor(partners)
    wanted = torch.ones_like(partners, dtype=torch.bool) if wanted is None else torch.tensor(wanted)
    return pairs(target, partners, wanted)


def expected(target, partners, side, names=NAMES):
    return torch.stack(
        [torch.stack([feature(names[t], names[j], side) for j in row]) for t, row in zip(target, partners, strict=True)]
    )


def test_by_hand():
    pairs = store()
    difference, commonality = ask(pairs, [0, 2], [[1, 3], [0, 1]])
    assert torch.equal(difference, expected([0, 2], [[1, 3], [0, 1]], 1))
    assert torch.equal(commonality, expected([0, 2], [[1, 3], [0, 1]], 2))
    assert pairs.encode.pairs == [("c0", "c1"), ("c0", "c3"), ("c2", "c0"), ("c2", "c1")]
    assert len(pairs) == 4
    again, _ = ask(pairs, [2], [[1, 4]])
    assert pairs.encode.pairs[4:] == [("c2", "c4")]  # the other was met before
    assert torch.equal(again, expected([2], [[1, 4]], 1))


def test_what_is_not_wanted_is_not_encoded():
    pairs = store()
    difference, commonality = ask(pairs, [0], [[1, 3, 5]], [[False, True, False]])
    assert pairs.encode.pairs == [("c0", "c3")]
    assert torch.equal(difference[0, 1], feature("c0", "c3", 1))
    assert not difference[0, [0, 2]].any()
    assert not commonality[0, [0, 2]].any()
    nothing, _ = ask(store(), [0], [[1]], [[False]])
    assert nothing.shape == (1, 1, DIM)


def test_what_it_may_take_is_known_before_anything_is_met():
    num_pairs = len(NAMES) * (len(NAMES) - 1)
    row = 2 * 4 * DIM
    assert store().max_bytes == num_pairs * row  # all pairs fit
    assert store(max_rows=3).max_bytes == 3 * row
    assert store(names=NAMES[:1]).max_bytes == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
def test_as_a_dict_would_keep_them(seed, max_rows, ahead):
    """Whatever comes, and however little fits: the right features, and every batch's pairs are there."""
    source = tiny_capt.generator(seed)
    pairs = store(max_rows)
    if ahead:
        t, j = torch.randint(7, (2, 30), generator=source)
        pairs.meet(t[t != j], j[t != j])
        assert len(pairs) <= max_rows
    largest = max_rows
    for _ in range(6):
        target = torch.randint(7, (3,), generator=source)
        partners = (target[:, None] + torch.randint(1, 7, (3, 2), generator=source)) % 7
        wanted = torch.rand(3, 2, generator=source) < 0.8
        found = pairs(target, partners, wanted)
        for side, value in enumerate(found, 1):
            own = expected(target.tolist(), partners.tolist(), side) * wanted[..., None]
            assert torch.equal(value, own)
        largest = max(largest, int(wanted.sum()))
        assert len(pairs) <= largest
        assert torch.equal(pairs.keys, pairs.keys.sort().values)
        assert len(pairs.rows.unique()) == len(pairs.rows)
    if max_rows >= 42:
        assert len(pairs.encode.pairs) == len(set(pairs.encode.pairs))
    assert pairs.has_forgotten or len(pairs) == len(set(pairs.encode.pairs))


def test_what_was_not_asked_for_longest_is_forgotten():
    pairs = store(max_rows=4)
    ask(pairs, [0], [[1, 2]])
    ask(pairs, [0], [[3, 4]])
    ask(pairs, [0], [[1, 2]])
    assert not pairs.has_forgotten
    ask(pairs, [0], [[5, 6]])  # no room: 3 and 4 go
    assert pairs.has_forgotten
    assert pairs.known()[0].tolist() == [[0, 1], [0, 2], [0, 5], [0, 6]]
    num_encoded = len(pairs.encode.pairs)
    ask(pairs, [0], [[1, 5]])
    assert len(pairs.encode.pairs) == num_encoded


def test_memory_follows_the_pairs_and_not_the_classes():
    names = [f"c{i}" for i in range(100_000)]
    pairs = store(names=names)
    difference, _ = ask(pairs, [99_999, 5], [[0, 99_998], [99_999, 6]])
    assert torch.equal(difference, expected([99_999, 5], [[0, 99_998], [99_999, 6]], 1, names))
    assert sum(value.nbytes for value in pairs.buffers()) < 1000


def test_ahead_the_most_frequent_come_first():
    pairs = store(max_rows=2)
    sources = pairs.meet(torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([1, 1, 2, 2, 2, 3]), "title")
    assert pairs.known()[0].tolist() == [[0, 1], [1, 2]]
    assert (sources, pairs.encode.titles) == ({"drawn": 2}, ["title"])
    assert not pairs.meet(torch.tensor([2]), torch.tensor([3]))  # full
    assert not pairs.meet(torch.tensor([0]), torch.tensor([1]))  # known


def test_classes_meet_by_name():
    one = store(names=["c0", "c1", "c2"])
    ask(one, [0, 2], [[1, 2], [0, 1]])
    other = store(names=["c5", "c2", "c1", "c2"])
    other.take_up(one.classnames, one.known())
    assert other.known()[0].tolist() == [[1, 2]]  # c2, c1; the others have no c0
    assert torch.equal(other.known()[1][0], feature("c2", "c1", 1))
    assert torch.equal(other.known()[2][0], feature("c2", "c1", 2))
    double = store(names=["c1", "c1", "c2"])
    ask(double, [0, 1], [[2], [2]])
    one.take_up(double.classnames, double.known())
    assert one.known()[0].tolist() == [[0, 1], [0, 2], [1, 2], [2, 0], [2, 1]]
    assert torch.equal(one.known()[1], torch.stack([feature(f"c{t}", f"c{j}", 1) for t, j in one.known()[0].tolist()]))


# Stored beside a run


def test_round_trip_and_only_what_it_is_made_of(tmp_path):
    pairs = store()
    ask(pairs, [0, 2], [[1, 3], [0, 1]])
    made_of = {"base": "a", "sentences": "b"}
    keep_pair_features(tmp_path, NAMES, made_of, *pairs.known(3))
    names, stored = read_pair_features(tmp_path, made_of)
    other = store(names=list(reversed(NAMES)))
    other.take_up(names, stored)
    assert len(other) == 3  # of four, as many as were to be kept
    t, j = other.known()[0].t().tolist()
    there = [(6 - a, 6 - b) for a, b in zip(t, j, strict=True)]
    assert set(there) < {(0, 1), (0, 3), (2, 0), (2, 1)}
    assert torch.equal(other.known()[2], torch.stack([feature(f"c{a}", f"c{b}", 2) for a, b in there]))
    assert read_pair_features(tmp_path, {"base": "a", "sentences": "another"}) is None
    assert read_pair_features(tmp_path / "nowhere", made_of) is None


def test_a_damaged_file_is_named(tmp_path):
    pairs = store()
    ask(pairs, [0], [[1]])
    made_of = {"base": "a"}
    keep_pair_features(tmp_path, NAMES[:1], made_of, *pairs.known())
    with pytest.raises(ValueError, match="is damaged .its pairs are none of its classes.; delete it, it is made anew"):
        read_pair_features(tmp_path, made_of)
    path = tmp_path / "capt" / "pair_features.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="is damaged .*; delete it, it is made anew") as caught:
        read_pair_features(tmp_path, made_of)
    assert str(path) in str(caught.value)


# In the model


def sentences_of(model):
    """Sentences that the model has had encoded from now on."""
    seen = []
    encode = model.semantic_miner.features.encode
    real = encode.text_features

    def spied(sentences):
        seen.extend(sentences)
        return real(sentences)

    object.__setattr__(encode, "text_features", spied)
    return seen


@torch.no_grad()
def test_nothing_is_encoded_where_no_class_is_known(base, bank):
    """And the answer is the one that all features would give."""
    model = make_model(base, bank=bank)
    stir(model)
    names = [name for name in NEW_CLASSES if name not in CLASSES]
    serve(model, names, bank)
    seen = sentences_of(model)
    features = encode(base, images(6))
    out = model(*features)
    assert not seen
    assert torch.equal(out.logits, out.base_logits)
    assert out.pairs.valid.any()
    model.settings.__dict__["gate_by_evidence"] = False  # now the experts are asked
    model(*features)
    assert seen


@torch.no_grad()
@pytest.mark.parametrize("switches", [{"use_sem": False}, {"use_mgde": False}, {"use_sam": False}])
def test_nothing_is_encoded_that_no_expert_reads(base, bank, switches):
    model = make_model(base, bank=bank, **switches).train()
    if "use_sam" in switches:
        model.eval()  # no samples, no evidence
    seen = sentences_of(model)
    model(*encode(base, images(4)))
    meet = meet_pairs_of_bank(model, bank) if "use_sam" not in switches else {}
    assert not seen
    assert not meet


@torch.no_grad()
def test_queries_that_the_bank_is_silent_on_cost_nothing(base, bank):
    """Among classes of both kinds only the pairs of queries with a known class are encoded; no answer differs."""
    model = make_model(base, NEW_CLASSES, bank, num_pairs=2)
    stir(model)
    _, cls, tokens = encode(base, images(40))
    own = model(tiny_capt.unit(40, base.embed_dim), cls, tokens)
    known = model.to_bank >= 0
    met = model.semantic_miner.features.known()[0]
    of_known = known[own.pairs.target] | known[own.pairs.partners].any(dim=1)
    assert of_known.any()
    assert not of_known.all()
    asked = {
        (int(t), int(j))
        for t, row, k in zip(own.pairs.target, own.pairs.partners, of_known, strict=True)
        if k
        for j in row
    }
    assert set(map(tuple, met.tolist())) == asked
    model.semantic_miner.features.meet(*torch.cartesian_prod(torch.arange(7), torch.arange(7)).t())
    whole = model.semantic_miner(own.pairs, own.pairs.valid)
    refined = model.refiner.expert(own.z, whole, own.samples)
    torch.testing.assert_close(refined.z, own.refinement.z, rtol=0, atol=0)


def test_a_views_own_pairs_change_nothing(base, bank):
    model = make_model(base, bank=bank).train()
    features, label = encode(base, images(4)), torch.arange(4)
    torch.manual_seed(1)
    first = model(*features, label)
    seen = sentences_of(model)
    torch.manual_seed(1)
    again = model(*features, label, mined=first.pairs)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.losses["loss"], again.losses["loss"])
    assert not seen


# What the experts start from


def test_pairs_of_the_bank_are_met_ahead(base, bank):
    model = make_model(base, bank=bank)
    titles, encode = [], model.semantic_miner.features.encode
    model.semantic_miner.features.encode = lambda pairs, title=None: titles.append(title) or encode(pairs, title)
    sources = meet_pairs_of_bank(model, bank)
    assert titles == ["Encoding pair prompts"]  # of a progress bar
    model.semantic_miner.features.encode = encode
    pairs = model.semantic_miner.features.known()[0]
    assert sources == {"difference: template": len(pairs), "commonality: template": len(pairs)}
    seen = sentences_of(model)
    with torch.no_grad():
        rows = bank.entries
        model(rows.feature[:-1], rows.cls[:-1], rows.tokens[:-1])
    assert not seen


def test_experts_start_from_mined_pairs_of_at_most_so_many(base, bank, monkeypatch):
    assert start.MOST_ROWS == 20_000
    model = make_model(base, bank=bank)
    taken = []
    monkeypatch.setattr(Expert, "start_from_prompts", lambda self, rows, *_: taken.append(rows))
    start_semantic_experts(model, 2, tiny_capt.generator())
    assert [len(rows) for rows in taken] == [0, 0]  # nothing was met
    meet_pairs_of_bank(model, bank)
    _, difference, commonality = model.semantic_miner.features.known()
    taken.clear()
    start_semantic_experts(model, 2, tiny_capt.generator())
    assert torch.equal(taken[0], difference)
    assert torch.equal(taken[1], commonality)
    monkeypatch.setattr("trainers.capt.method.start.MOST_ROWS", 3)
    taken.clear()
    start_semantic_experts(model, 2, tiny_capt.generator())
    assert [len(rows) for rows in taken] == [3, 3]
    assert all((difference == row).all(dim=1).any() for row in taken[0])


def test_sentences_have_a_digest_of_their_own(tmp_path):
    assert PromptLibrary(tmp_path, "pets").digest() == PromptLibrary("nowhere", "others").digest()
