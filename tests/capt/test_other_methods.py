"""Bases of other methods give what the method computes, on classes of its training and on others."""

import other_methods
import pytest
import tiny_capt
import torch
from other_methods import METHODS, save
from torch.nn.functional import normalize

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip
from trainers.capt.bases.context import meta_net
from trainers.capt.bases.learners import BaseSpec, build_base

OLD, NEW = ["cup", "red_fox", "sea view"], ["otter", "accordion"]


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(other_methods.deep_clip_state(), path)
    return path


@pytest.fixture(scope="module")
def clip(clip_path):
    return PromptedCLIP(load_clip(str(clip_path)))


def images():
    return tiny_capt.images(2)  # 32 x 32, as this CLIP sees them


def spec_of(name, folder, **more):
    _, _, _, options, dataset = METHODS[name]
    template = "a photo of a {}, a type of pet." if dataset == "OxfordPets" else "a photo of a {}."
    given = {"template": template, "options": options, "dataset": dataset}
    return BaseSpec(name, str(folder), **(given | more))


def base_of(name, clip, folder, change=None, **more):
    model_name, weights, *_ = METHODS[name]
    state = weights(clip)
    save(folder, model_name, change(state) if change else state)
    base = build_base(clip, spec_of(name, folder, **more))
    base.trained_on = OLD
    return base, state


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_logits_are_the_methods(name, clip, tmp_path):
    base, state = base_of(name, clip, tmp_path)
    _, _, logits, options, _ = METHODS[name]
    for names, is_new in ((OLD, False), (NEW, True)):
        base.set_classes(names)
        features = base.encode_image(images())
        z = normalize(features.feature.float(), dim=-1)
        plain = [name.replace("_", " ") for name in names]
        expected = logits(clip, state, plain, images(), options=options, is_new=is_new)
        torch.testing.assert_close(base.logits(z), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(normalize(base.project(features.cls), dim=-1), z, rtol=1e-5, atol=1e-5)
        assert features.tokens.shape == (2, 4, other_methods.VW)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision(name, clip, tmp_path):
    exact, _ = base_of(name, clip, tmp_path / "a")
    half, _ = base_of(name, clip, tmp_path / "b", lambda state: {key: value.half() for key, value in state.items()})
    for base in (exact, half):
        base.set_classes(OLD)
    torch.testing.assert_close(exact.text_features, half.text_features, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_sentences_meet_the_texts_in_one_space(name, clip, tmp_path):
    base, _ = base_of(name, clip, tmp_path)
    base.set_classes(OLD)
    sentences = base.encode_sentences(["a red fox has pointed ears.", "both live in water."])
    assert sentences.shape == (2, base.embed_dim)
    assert base.text_features.shape == (3, base.embed_dim)
    torch.testing.assert_close(sentences.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("name", METHODS)
def test_digest_follows_every_weight_that_is_used(name, clip, tmp_path):
    unused = ("bias_vectors", "ctx_att3", "token_suffix")
    used = [key for key in METHODS[name][1](clip) if key not in unused and not (name == "KgCoOp" and "meta" in key)]
    digest = base_of(name, clip, tmp_path / "same")[0].digest()
    again, _ = base_of(name, clip, tmp_path / "again")
    again.set_classes(NEW)  # whatever it serves
    assert digest == again.digest()
    for number, key in enumerate(used):
        other, _ = base_of(name, clip, tmp_path / str(number), lambda state, key=key: state | {key: state[key] + 0.5})
        assert other.digest() != digest, key


def test_digest_follows_the_options(clip, tmp_path):
    digests = [base_of("MMA", clip, tmp_path, options={"ADAPTER_SCALE": s})[0].digest() for s in (0.5, 0.25)]
    digests += [
        base_of("MMRL", clip, tmp_path, options={"ALPHA": a, "REP_LAYERS": [4, 5, 7]})[0].digest() for a in (0.6, 1)
    ]
    assert len(set(digests)) == 4
    default = [base_of("MMA", clip, tmp_path, options=given)[0].digest() for given in ({}, {"ADAPTER_SCALE": 0.001})]
    assert default[0] == default[1]


def test_a_half_is_told_by_names(clip, tmp_path):
    base, _ = base_of("MMRL", clip, tmp_path)
    for names, mixes in ((OLD, True), (OLD[:1], True), ([*OLD, "otter"], False), (NEW, False)):
        base.set_classes(names)
        assert base.mixes == mixes
    texts = base.encode_classes(OLD)
    base.set_classes(OLD)
    assert torch.equal(texts, base.text_features)  # T does not depend on the half, nor do the sentences
    base.trained_on = None  # nobody said: the classes in use are those of the training
    base.set_classes(NEW)
    assert base.mixes


def test_the_adapter_moves_the_class_token_alone(clip, tmp_path):
    model = tiny_capt.make_model(base_of("MMRL", clip, tmp_path)[0], OLD)
    z, cls, tokens = tiny_capt.encode(model.base, images())
    assert cls.shape == (2, 2 * other_methods.VW)
    torch.nn.init.normal_(model.sample_miner.adapter.convolution.weight)
    moved = model.sample_miner.adapter(cls, tokens, torch.ones(2))
    alone = model.sample_miner.adapter(cls[:, : other_methods.VW], tokens, torch.ones(2))
    assert torch.equal(moved[:, : other_methods.VW], alone)
    assert torch.equal(moved[:, other_methods.VW :], cls[:, other_methods.VW :])
    assert not torch.allclose(alone, cls[:, : other_methods.VW])
    output = model(z, cls, tokens)
    assert output.logits.shape == (2, 3)


def test_capt_trains_on_two_features(clip, tmp_path):
    """Bank, retrieval, experts and losses on a base whose joint space is wider than CLIP's."""
    base, _ = base_of("MMRL", clip, tmp_path)
    bank = tiny_capt.make_bank(base, OLD, num_images=9)
    model = tiny_capt.make_model(base, OLD, bank).train()
    z, cls, tokens = tiny_capt.encode(base, images())
    losses = model(z, cls, tokens, torch.tensor([0, 1])).losses
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    gradients = [p.grad for p in model.refiner.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0


REFUSED = [
    (
        "MMA",
        {},
        {"options": {"SCALE": 1.0}},
        r"OPTIONS of MMA has \['SCALE'\], which is none of \['ADAPTER_SCALE', 'TEXT",
    ),
    ("MMA", {}, {"options": {"ADAPTER_SCALE": "big"}}, "OPTIONS.ADAPTER_SCALE of MMA must be like 0.001, got 'big'"),
    ("MMA", {"text_adapter.3.up.weight": None, "text_adapter.5.up.weight": None}, {}, 'holds no "text_adapter'),
    ("MMA", {"shared_adapter.5.0.bias": None}, {}, 'holds no "shared_adapter.5.0.bias"'),
    ("MMA", {"text_adapter.3.down.0.weight": torch.zeros(6, 8)}, {}, "has width 8, this CLIP has 64"),
    ("MMA", {"visual_adapter.0.up.weight": torch.zeros(1)}, {}, r"a visual_adapter at \[0, 3, 5\]; those of this CLIP"),
    ("MMRL", {}, {"options": {}}, r"holds tokens for 3 layers, .*REP_LAYERS of MMRL names \[6, 7"),
    ("MMRL", {}, {"options": {"ALPHA": 2, "REP_LAYERS": [1, 2, 3]}}, r"ALPHA of MMRL must be in \[0, 1\], got 2.0"),
    ("MMRL", {"image_encoder.proj_rep": None}, {}, 'holds no "image_encoder.proj_rep"'),
    (
        "TCP",
        {"meta_net.linear2.weight": torch.zeros(6, 16), "meta_net.linear2.bias": torch.zeros(6)},
        {},
        "6 numbers a",
    ),
    (
        "TCP",
        {"meta_net.linear2.weight": torch.zeros(64, 16), "meta_net.linear2.bias": torch.zeros(64)},
        {},
        "64 numbers a",
    ),
    ("TCP", {}, {"options": {"W": 1}}, "OPTIONS of TCP has"),
    ("CoPrompt", {"adapter_text.fc.2.weight": None}, {}, 'holds no "adapter_text.fc.2.weight"'),
    ("KgCoOp", {"ctx": torch.zeros(3, 4, 64)}, {}, r"contexts of the shape \(3, 4, 64\), KgCoOp needs one for all"),
    ("ProGrad", {}, {"class_token_position": "front"}, "set TRAINER.CAPT.BASE.CLASS_TOKEN_POSITION end"),
    ("ATPrompt", {"token_middle1": None}, {}, 'holds no "token_middle1"'),
    ("ATPrompt", {"meta_net.linear1.weight": torch.zeros(4, 64)}, {}, "is of CoCoOp_ATP"),
]


@pytest.mark.parametrize(("name", "changes", "more", "words"), REFUSED)
def test_what_does_not_fit_is_refused(name, changes, more, words, clip, tmp_path):
    def change(state):
        return {key: value for key, value in (state | changes).items() if value is not None}

    with pytest.raises(ValueError, match=words):
        base_of(name, clip, tmp_path, change, **more)


def test_weights_that_nobody_would_use_are_named(clip, tmp_path):
    """A checkpoint of one method is none of another, whatever both of them hold."""
    for name, (model_name, *_) in METHODS.items():
        for other, (folder, *_) in METHODS.items():
            has_form_of = {"KgCoOp": {"ProGrad"}}.get(name, set())  # all that ProGrad writes is what KgCoOp reads
            if model_name != folder or other == name or other in has_form_of:
                continue
            path = save(tmp_path / f"{name}-{other}", folder, METHODS[other][1](clip))
            with pytest.raises(ValueError, match=rf"{name} does not use|holds no|TCP's gives"):
                build_base(clip, spec_of(name, path))
    more = {f"visual.{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(ValueError, match=r"holds \['visual.0', .*'visual.3'\] and 2 more, which MMA does not use"):
        base_of("MMA", clip, tmp_path, lambda state: state | more)
    visual = {"image_encoder.VPT": torch.zeros(2, other_methods.VW)}
    with pytest.raises(ValueError, match=r"holds \['image_encoder.VPT'\], which CoPrompt does not use"):
        base_of("CoPrompt", clip, tmp_path, lambda state: state | visual)
    frozen = {"image_encoder.ln_post.weight": torch.zeros(1), "prompt_learner.token_prefix": torch.zeros(1)}
    base_of("CoPrompt", clip, tmp_path, lambda state: state | frozen)


def test_tcp_on_a_shallow_tower_skips_its_tokens_aloud(small_clip, tmp_path, caplog):
    shallow = PromptedCLIP(load_clip(str(small_clip)))
    base, state = base_of("TCP", shallow, tmp_path)
    base.set_classes(["otter"])
    assert "has no block 8, where TCP's class-aware tokens enter" in caplog.text
    expected = other_methods.prompted_texts(shallow, ["otter"], state["ctx"], "{}, a type of pet.")[0]
    torch.testing.assert_close(base.text_features[0], normalize(expected, dim=-1), rtol=1e-5, atol=1e-5)


COOPS = ("CoOp", "KgCoOp", "ProGrad")


def left_in(clip, folder, name, class_names, **more):
    """A base of CoOp's form whose stored prompts have these words behind the context; and the learned context."""
    context = METHODS["ProGrad"][1](clip)["ctx"]
    suffix = clip.embed(clip.tokenize(class_names))[:, 1:]
    state = {"ctx": context, "token_suffix": suffix}
    if name == "CoCoOp":
        state |= {
            f"meta_net.{key}": value for key, value in meta_net(clip.embed_dim, clip.text_width).state_dict().items()
        }
    save(folder, "prompt_learner", state)
    return build_base(clip, BaseSpec(name, str(folder), **more)), context


@pytest.mark.parametrize("name", COOPS)
def test_a_word_that_was_left_in_stays(name, clip, tmp_path):
    """Eight words, nine tokens: the last one was not learned, and the suffixes of all classes begin with it."""
    base, learned = left_in(clip, tmp_path, name, ["a otter.", "a mug.", "a red fox."])
    context = torch.cat([learned, clip.embed(clip.tokenize(["a"]))[0, 1:2]])
    expected = torch.stack(other_methods.prompted_texts(clip, ["cup"], context))
    torch.testing.assert_close(base.encode_classes(["cup"]), normalize(expected, dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "more"), [("CoOp", {"class_token_position": "middle"}), ("CoCoOp", {})])
def test_a_word_that_was_left_in_where_nobody_can_serve_it_is_refused(name, more, clip, tmp_path):
    with pytest.raises(ValueError, match="has words behind its learned context that were not learned") as caught:
        left_in(clip, tmp_path / "left", name, ["a otter.", "a mug."], **more)
    assert "\n" not in str(caught.value)
    left_in(clip, tmp_path / "none", name, ["otter.", "mug."], **more)


@pytest.mark.parametrize("name", COOPS)
def test_a_word_that_one_class_begins_with_is_part_of_its_name(name, clip, tmp_path):
    base, learned = left_in(clip, tmp_path, name, ["a capella.", "mug."])
    assert torch.equal(base.context, learned)
