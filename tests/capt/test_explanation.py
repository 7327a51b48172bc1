"""Answers and their reasons, from a predictor put together in memory: no run folder but for the pair features."""

import math
from types import SimpleNamespace

import pytest
import tiny_capt
import torch
from PIL import Image
from tiny_capt import CLASSES, NEW_CLASSES
from torch.nn.functional import normalize

from trainers.capt.bank.prompt_library import PromptLibrary
from trainers.capt.run.serving import keep_pair_features
from trainers.capt.use.explanation import Explanation, explain, mined_pairs, retrieved
from trainers.capt.use.predictor import Prediction, Predictor

PIXELS = tiny_capt.images(3, seed=11)


def make_predictor(base, bank, run, at_test=True):
    model = tiny_capt.make_model(base, CLASSES, bank if at_test else None)
    tiny_capt.stir(model)
    node = {"INTERPOLATION": "bicubic", "SIZE": (32, 32), "TRANSFORMS": ["normalize"]}
    node |= {"PIXEL_MEAN": [0.5, 0.5, 0.5], "PIXEL_STD": [0.25, 0.25, 0.25]}
    config = {"INPUT": node, "TRAINER": {"CAPT": {"BANK": {"AT_TEST": at_test}}}}
    record = {"config": config, "classnames": CLASSES}
    return Predictor(run, record, model, bank, PromptLibrary("no folder", "none"), "fp32")


@pytest.fixture
def predictor(base, bank, tmp_path):
    return make_predictor(base, bank, tmp_path)


# Answers


def test_answers_are_the_models(predictor):
    output = predictor.forward(PIXELS)
    found = predictor.predict(PIXELS, top_k=2)
    probs, base_probs = output.logits.softmax(dim=-1), output.base_logits.softmax(dim=-1)
    for row, prediction in enumerate(found):
        order = probs[row].argsort(descending=True)[:2].tolist()
        assert prediction.class_names == tuple(CLASSES[c] for c in order)
        assert prediction.confidences == pytest.approx(probs[row][order].tolist(), rel=1e-5)
        assert prediction.base_class_names[0] == CLASSES[base_probs[row].argmax()]
        assert prediction.class_name == prediction.class_names[0]
        assert prediction.path is None


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_size_of_a_batch_changes_nothing(predictor, batch_size):
    whole = predictor.forward(PIXELS).logits
    torch.testing.assert_close(predictor.logits(PIXELS, batch_size=batch_size), whole, rtol=1e-5, atol=1e-4)


def test_one_image_tensor_is_a_batch_of_one(predictor):
    assert predictor.logits(PIXELS[0]).shape == (1, len(CLASSES))


def test_no_image_no_answer(predictor):
    assert predictor.predict([]) == []
    assert predictor.logits([]).shape == (0, len(CLASSES))
    assert explain(predictor, []) == []


def test_files_and_pictures_give_the_same_answer(predictor, tmp_path):
    (path,) = tiny_capt.draw_pictures(tmp_path / "pictures", ["cup"], 1)["cup"]
    with Image.open(path) as picture:
        own = predictor.predict([picture])[0]
    for item in (path, [path]):
        named = predictor.predict(item)[0]
        assert named.path == path
        assert named.confidences == own.confidences
    assert own.path is None


def test_top_k_is_at_most_all_classes(predictor):
    assert len(predictor.predict(PIXELS, top_k=99)[0].class_names) == len(CLASSES)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        predictor.predict(PIXELS, top_k=0)


@pytest.mark.parametrize("names", [[], ["cup", ""], ["cup", 3], ["  "]])
def test_class_names_must_be_names(predictor, names):
    with pytest.raises(ValueError, match="class_names must be a list of at least one name"):
        predictor.predict(PIXELS, class_names=names)
    assert predictor.served == CLASSES


def test_other_classes_and_back_again(predictor):
    own = predictor.logits(PIXELS)
    other = predictor.logits(PIXELS, class_names=NEW_CLASSES)
    assert other.shape == (3, len(NEW_CLASSES))
    assert predictor.served == NEW_CLASSES
    assert torch.equal(predictor.logits(PIXELS), own)


def test_order_of_the_classes_changes_no_confidence(predictor):
    own = predictor.logits(PIXELS)
    turned = predictor.logits(PIXELS, class_names=CLASSES[::-1])
    torch.testing.assert_close(turned.flip(1), own, rtol=1e-5, atol=1e-4)


# Reasons


def test_an_explanation_holds_the_prediction(predictor):
    found = explain(predictor, PIXELS, top_k=3)
    assert [e.prediction for e in found] == predictor.predict(PIXELS, top_k=3)


def test_angle_is_how_far_the_feature_was_turned(predictor):
    output = predictor.forward(PIXELS)
    for row, found in enumerate(explain(predictor, PIXELS)):
        cosine = float(normalize(output.z[row].double(), dim=0) @ normalize(output.refinement.z[row].double(), dim=0))
        assert found.angle == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)
        assert found.angle > 0.1
        assert found.evidence == pytest.approx(float(output.refinement.evidence[row]))


def test_pairs_start_at_the_pseudo_label_and_never_name_it_twice(predictor):
    for found in explain(predictor, PIXELS):
        assert found.pairs
        targets, partners = {pair.target for pair in found.pairs}, [pair.partner for pair in found.pairs]
        assert len(targets) == 1
        assert not targets & set(partners)
        assert len(set(partners)) == len(partners)
        scores = [pair.score for pair in found.pairs]
        assert scores == sorted(scores, reverse=True)


def test_pairs_come_with_what_is_said_of_them(predictor):
    pair = explain(predictor, PIXELS)[0].pairs[0]
    t, j = (name.replace("_", " ") for name in (pair.target, pair.partner))
    first, second = sorted((t, j))
    assert pair.difference == (f"a photo of a {t}, not a {j}.",)
    assert pair.commonality == (f"a photo of a {first} or a {second}.",)
    assert pair.sources == ("template", "template")


def test_pairs_that_are_not_there_are_left_out(predictor):
    """Fewer partners than the miner has places for."""
    output = predictor.forward(PIXELS)
    valid = torch.zeros_like(output.pairs.valid)
    valid[1, 0] = True
    fewer = SimpleNamespace(**{**vars(output.pairs), "valid": valid})
    assert [len(pairs) for pairs in mined_pairs(predictor, SimpleNamespace(pairs=fewer))] == [0, 1, 0]


def test_representatives_are_entries_of_the_bank(predictor, bank):
    output = predictor.forward(PIXELS)
    entries = bank.entries
    for row, representatives in enumerate(retrieved(predictor, output)):
        places = output.samples.entry[row][output.samples.valid[row]].tolist()
        assert len(representatives) == len(places) > 0
        for found, place in zip(representatives, places, strict=True):
            assert found.path == bank.paths[entries.index[place]]
            assert found.label == CLASSES[entries.label[place]]
            assert found.rival == CLASSES[entries.rival[place]]
            assert found.is_error == bool(entries.label[place] != entries.pseudo_label[place])
        similarities = [found.similarity for found in representatives]
        assert similarities == sorted(similarities, reverse=True)
        assert all(-1.001 <= cosine <= 1.001 for cosine in similarities)


def test_a_bank_that_is_not_consulted_shows_nothing(base, bank, tmp_path):
    predictor = make_predictor(base, bank, tmp_path, at_test=False)
    assert predictor.bank is bank  # it is there to be looked at
    for found in explain(predictor, PIXELS):
        assert found.representatives == ()
        assert found.evidence == 0


def test_classes_that_the_bank_does_not_know_have_no_representatives(predictor):
    new = [name for name in NEW_CLASSES if name not in CLASSES]
    for found in explain(predictor, PIXELS, class_names=new):
        assert found.representatives == ()
        assert found.angle == pytest.approx(0, abs=1e-3)
        assert not found.is_changed


def test_is_changed_compares_with_the_base():
    def explained(own, base):
        prediction = Prediction(None, own, (0.6, 0.4), base, (0.7, 0.3))
        return Explanation(prediction, (), (), 0.0, 0.0)

    assert not explained(("cup", "jug"), ("cup", "jug")).is_changed
    assert explained(("cup", "jug"), ("jug", "cup")).is_changed


# What a run folder keeps of it


def test_features_that_a_run_keeps_spare_a_load_the_encoding(base, bank, tmp_path, monkeypatch):
    one = make_predictor(base, bank, tmp_path)
    first, pairs = one.logits(PIXELS), one.model.semantic_miner.features
    made_of = {"base": base.digest(), "sentences": one.library.digest()}
    keep_pair_features(tmp_path, pairs.classnames, made_of, *pairs.known())

    def refuse(*_):
        raise AssertionError("the pairs were encoded again")

    predictor = make_predictor(base, bank, tmp_path)
    monkeypatch.setattr(type(base), "encode_sentences", refuse)
    again = make_predictor(base, bank, tmp_path)
    assert torch.equal(again.logits(PIXELS), first)
    assert torch.equal(predictor.logits(PIXELS), first)


def test_pairs_take_no_more_than_the_run_allows(base, bank, tmp_path):
    predictor = make_predictor(base, bank, tmp_path)
    before = predictor.logits(PIXELS)
    predictor.record["config"]["TRAINER"]["CAPT"]["SEM"] = {"MAX_GB": 3 * 2 * 4 * base.embed_dim / 2**30}
    again = predictor.logits(PIXELS, CLASSES[::-1])
    assert predictor.model.semantic_miner.features.max_rows == 3
    torch.testing.assert_close(again.flip(1), before, rtol=1e-4, atol=1e-4)


def test_a_run_without_them_is_served_all_the_same_and_nothing_is_written(base, bank, tmp_path):
    predictor = make_predictor(base, bank, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert predictor.logits(PIXELS).isfinite().all()
    assert sorted(tmp_path.rglob("*")) == before
