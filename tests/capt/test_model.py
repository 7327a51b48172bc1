"""The whole model: it starts as the base, counts no classes, stays finite, and runs on one device without a sync."""

import itertools
import sys
from pathlib import Path

import pytest
import tiny_capt
import torch
from tiny_capt import CLASSES, NEW_CLASSES, encode, images, make_bank, make_base, make_model, serve, stir
from torch._subclasses.fake_tensor import FakeTensorMode

from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bases.learners import BaseSpec
from trainers.capt.config import extend_cfg, settings_from

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

SWITCHES = [
    dict(zip(("use_sem", "use_sam", "use_mgde"), on, strict=True)) for on in itertools.product((True, False), repeat=3)
]
LEARNERS = {
    "CoOp": {"N_CTX": 4},
    "CoCoOp": {"CTX_INIT": "a photo of a"},
    "MaPLe": {"PROMPT_DEPTH": 2},
    "IVLP": {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2},
    "PromptSRC": {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2},
    "VPT": {"N_CTX_VISION": 4, "PROMPT_DEPTH_VISION": 2},
}


@pytest.fixture(scope="module")
def base_of(small_clip, tmp_path_factory):
    """``base_of(name)`` is the frozen base model of a learner whose prompts were moved away from their start."""

    def make(name):
        if name == "ZeroshotCLIP":
            return make_base(small_clip)
        folder = tmp_path_factory.mktemp("learner")
        trainer = tiny.make_trainer(name, small_clip, LEARNERS[name])
        tiny.set_prompts(trainer.model)
        trainer.save_model(0, str(folder))
        return make_base(small_clip, BaseSpec(name, str(folder)))

    return make


@pytest.mark.parametrize("learner", ["ZeroshotCLIP", *LEARNERS])
@torch.no_grad()
def test_starts_as_the_base(base_of, learner):
    base = base_of(learner)
    bank = tiny_capt.make_bank(base)
    pixels = images(4)
    for switches in SWITCHES if learner == "ZeroshotCLIP" else SWITCHES[:1]:
        for gate, own_bank in itertools.product((True, False), (bank, None)):
            model = make_model(base, bank=own_bank, gate_by_evidence=gate, gain=0, **switches)
            out = model(*encode(base, pixels))
            assert torch.equal(out.base_logits, base.logits(out.z))
            assert torch.equal(out.logits, out.base_logits)
    own = base.encode_image(pixels).feature  # ... and these logits are the learner's own, not only alike each other
    scale = base.prompted.clip.logit_scale.exp()
    if learner != "CoCoOp":
        expected = scale * torch.nn.functional.normalize(own, dim=-1) @ base.text_features.t()
        torch.testing.assert_close(out.logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("switches", [s for s in SWITCHES if s["use_mgde"]])
def test_gradients_are_finite_and_reach_everything(base, bank, switches):
    model = make_model(
        base, bank=bank, gate_by_evidence=switches["use_sam"], weight_keep=0.1, top_k=3, **switches
    ).train()
    stir(model)
    out = model(*encode(base, images(6)), torch.arange(6) % 5, torch.full((6,), -1))
    out.losses["loss"].backward()
    grads = {name: p.grad for name, p in model.refiner.named_parameters()}
    silent = {name for name, grad in grads.items() if grad is None or not grad.abs().sum() > 0}
    if all(switches.values()) or not switches["use_sam"]:
        assert not silent
    elif not switches["use_sem"]:
        assert not {name for name in silent if not name.startswith("expert.mixture.experts")}
    assert all(torch.isfinite(p.grad).all() for p in model.refiner.parameters() if p.grad is not None)
    assert all(p.grad is None for p in base.parameters())


@torch.no_grad()
def test_total_is_the_weighted_sum(base, bank):
    weights = {"weight_confuse": 0.7, "weight_balance": 0.2, "weight_keep": 0.4}
    model = make_model(base, bank=bank, **weights)
    stir(model)
    losses = model(*encode(base, images(4)), torch.arange(4)).losses
    parts = {"loss_ori": 1.0, "loss_confuse": 0.7, "loss_balance": 0.2, "loss_keep": 0.4}
    assert set(losses) == {"loss", *parts}
    torch.testing.assert_close(losses["loss"], sum(w * losses[name] for name, w in parts.items()))
    off = make_model(base, bank=bank, weight_confuse=0.0, weight_balance=0.0, weight_keep=0.0)
    assert set(off(*encode(base, images(4)), torch.arange(4)).losses) == {"loss", "loss_ori"}


@torch.no_grad()
def test_own_class_is_no_rival(base, bank, monkeypatch):
    seen = {}
    monkeypatch.setattr("trainers.capt.method.model.confuse_loss", lambda *args: seen.setdefault("args", args)[0].sum())
    model = make_model(base, bank=bank)
    label = torch.arange(6) % 5
    out = model(*encode(base, images(6)), label)
    _, _, _, rivals, rival_valid, _, rep_valid, _ = seen["args"]
    assert torch.equal(rival_valid[:, 0], out.pairs.target != label)
    assert (rivals[rival_valid] != label[:, None].expand_as(rivals)[rival_valid]).all()
    assert torch.equal(rep_valid, out.samples.valid & (out.samples.label != label[:, None]))
    assert rep_valid.any()
    assert (out.samples.valid & ~rep_valid).any()


# Class counts and orders


@torch.no_grad()
def test_weights_serve_other_classes(base, bank):
    trained = make_model(base, bank=bank)
    stir(trained)
    other = make_model(base, NEW_CLASSES, bank)
    other.refiner.load_state_dict(trained.refiner.state_dict(), strict=True)
    assert other(*encode(base, images(3))).logits.shape == (3, 7)
    assert not [n for n, p in trained.refiner.state_dict().items() if set(p.shape) & {5, 7} and "token_type" not in n]


@torch.no_grad()
def test_order_of_classes_does_not_matter(base, bank):
    model = make_model(base, bank=bank)
    stir(model)
    features = encode(base, images(4))
    expected = model(*features).logits
    assert not torch.allclose(expected, model(*features).base_logits)
    order = [3, 0, 4, 1, 2]
    serve(model, [CLASSES[c] for c in order], bank)
    torch.testing.assert_close(model(*features).logits, expected[:, order], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_batch_does_not_matter(base, bank):
    model = make_model(base, bank=bank)
    stir(model)
    z, cls, tokens = encode(base, images(4))
    together = model(z, cls, tokens).logits
    alone = torch.cat([model(z[b : b + 1], cls[b : b + 1], tokens[b : b + 1]).logits for b in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(together, model(z, cls, tokens).logits)  # dropout is off


@pytest.mark.parametrize("classnames", [["cup"], ["cup", "otter"], CLASSES[:3]])
@pytest.mark.parametrize("with_bank", ["full", "empty", "none"])
def test_always_finite(base, bank, classnames, with_bank):
    if with_bank == "empty":
        sure = torch.full((1, 5), 0.0)
        sure[0, 0] = 1
        z, cls, tokens = encode(base, images(1))
        bank = ConfusionBank.build(CLASSES, ["a"], [JudgedViews.of(sure, torch.tensor([0]), z, cls=cls, tokens=tokens)])
    model = make_model(base, classnames, None if with_bank == "none" else bank, num_pairs=9, num_representatives=40)
    stir(model)
    label = torch.arange(3) % len(classnames)
    out = model(*encode(base, images(3)), label)
    out.losses["loss"].backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(v) for v in out.losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.refiner.parameters() if p.grad is not None)


# Towers and devices


def test_resnet(small_clip, tmp_path):
    torch.save(tiny.resnet_state(), tmp_path / "resnet.pt")
    base = make_base(tmp_path / "resnet.pt")
    z, cls, tokens = encode(base, images(3))
    assert cls.shape == (3, 256)  # what the attention pool asks with
    assert tokens is None
    silent = make_model(base, use_sam=False, gate_by_evidence=False)
    assert silent(z, cls, tokens).samples is None

    bank = make_bank(base)
    assert bank.filed.keys.shape[1] == 256
    assert not bank.has_tokens
    model = make_model(base, bank=bank)
    assert model.refiner.adapter is None
    out = model(z, cls, tokens, torch.tensor([0, 1, 2]))
    assert out.samples.valid.any()
    assert torch.equal(out.samples.u, z)
    assert (out.logits - out.base_logits).abs().max() > 1e-3  # the bank's corrections speak
    assert "loss_confuse" not in out.losses  # it trains the adapter
    out.losses["loss"].backward()
    assert model.refiner.expert.mixture.out.weight.grad.abs().sum() > 0


def test_without_an_adapter_as_with_an_untrained_one(base, bank):
    """Its convolution starts at zero: the confusion feature of an untrained adapter is the image feature."""
    z, cls, tokens = encode(base, images(3, seed=8))
    outputs = [make_model(base, bank=bank, use_adapter=on)(z, cls, tokens) for on in (True, False)]
    untrained, without = (output.samples for output in outputs)
    assert without.valid.any()
    assert torch.equal(untrained.entry, without.entry)
    for name in ("u", "features", "corrections", "similarity"):
        torch.testing.assert_close(getattr(without, name), getattr(untrained, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-3, atol=1e-3)


def test_sam_off_leaves_experts_a_voice():
    """Evidence comes from the samples; without them a gate by evidence would leave nothing to train."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    assert settings_from(cfg.TRAINER.CAPT).gate_by_evidence
    cfg.TRAINER.CAPT.SAM.ON = False
    assert not settings_from(cfg.TRAINER.CAPT).gate_by_evidence


def _to_fake(module, mode, device):
    """``module.to`` does not work under the mode: replace every parameter and buffer."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is not None:
                    with mode:
                        fake = torch.empty(value.shape, dtype=value.dtype, device=device)
                    store[name] = torch.nn.Parameter(fake, False) if store is part._parameters else fake


@pytest.mark.parametrize("learner", ["ZeroshotCLIP", "CoCoOp", "MaPLe"])
def test_one_device_and_no_sync(base_of, learner, monkeypatch):
    """On fake CUDA tensors, one on the CPU or a value that the host must read raises."""
    base = base_of(learner)
    bank = tiny_capt.make_bank(base)
    model = make_model(base, bank=bank).train()
    mode, device = FakeTensorMode(allow_non_fake_inputs=True), "cuda:0"
    _to_fake(model, mode, device)
    with mode, torch.no_grad():
        bank.counts = torch.zeros(5, 5, device=device)
        bank.filed.is_gathered = True  # what a bank on such a device would do
        for part in (bank.entries, bank.filed, bank.likeness):
            for name, v in vars(part).items():
                if isinstance(v, torch.Tensor):
                    part.__dict__[name] = torch.empty(v.shape, dtype=v.dtype, device=device)
        if learner == "CoCoOp":  # its class tokens are no buffers
            tokens = vars(base.tokens)
            fake = {
                n: torch.empty_like(v, device=device) if isinstance(v, torch.Tensor) else v for n, v in tokens.items()
            }
            base.tokens = type(base.tokens)(**fake)
        features = base.encode_image(torch.empty(3, 3, 32, 32, device=device))
        label = torch.zeros(3, dtype=torch.long, device=device)
        z = torch.nn.functional.normalize(features.feature.float(), dim=-1)
        # New pairs are looked for on the host; a view that was met brings its own along, and a step asks for nothing.
        mined = model.semantic_miner.mine(torch.empty(3, 5, device=device))
        out = model(z, features.cls, features.tokens, label, label, mined)
        assert out.logits.device.type == "cuda"
        assert out.losses["loss"].device.type == "cuda"
        monkeypatch.setattr("trainers.capt.bank.retrieval.FEW", 0)  # as a large bank is searched
        assert model(z, features.cls, features.tokens, mined=mined).logits.shape == (3, 5)


def test_the_device_test_can_fail(base, bank):
    model = make_model(base, bank=bank)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _to_fake(model, mode, "cuda:0")  # the bank stays on the CPU
    with mode, torch.no_grad():
        features = base.encode_image(torch.empty(3, 3, 32, 32, device="cuda:0"))
        z = torch.nn.functional.normalize(features.feature, dim=-1)
        mined = model.semantic_miner.mine(torch.empty(3, 5, device="cuda:0"))
        with pytest.raises(Exception, match="[Dd]evice"):
            model(z, features.cls, features.tokens, mined=mined)
