"""LinearProbe, CLIPAdapter, TipAdapter and TipAdapterF: small cases by hand, other classes, checkpoints."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from colours import NAMES
from dassl.utils import save_checkpoint
from test_cuda_placement import _on_fake_gpu
from test_whole_runs import build  # noqa: F401 - a fixture
from torch._subclasses.fake_tensor import FakeTensorMode

from trainers.capt.run.feature_cache import FeatureCache, ViewBatch
from trainers.clip_adapter import Bottleneck
from trainers.linear_probe import LinearHead
from trainers.tip_adapter import ShotCache, mean_views

ADAPTERS = ["LinearProbe", "CLIPAdapter", "TipAdapter", "TipAdapterF"]
SCALE = torch.tensor(math.log(10.0))


def _random(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def _filled(shots=(0, 1, 1), classes=("a", "b"), **kwargs):
    adapter = ShotCache(list(classes), _random(len(classes), 4, seed=1), SCALE, len(shots), 2.0, 3.0, **kwargs)
    keys = torch.nn.functional.normalize(_random(len(shots), 4, seed=2), dim=-1)
    adapter.fill(keys, torch.tensor(shots))
    return adapter


# ------------------------------------------------------------------------------------------------------ Tip-Adapter


def test_tip_logits_by_hand():
    adapter = ShotCache(["a", "b"], torch.eye(2), SCALE, 3, alpha=2.0, beta=3.0)
    adapter.fill(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 1, 1]))
    # z = (1, 0): cosines with the keys 1, 0 and 0.6; s z T^T = (10, 0)
    expected = [10 + 2 * 1.0, 0 + 2 * (math.exp(-3.0) + math.exp(-3 * 0.4))]
    torch.testing.assert_close(adapter(torch.tensor([[5.0, 0.0]])), torch.tensor([expected]))


def test_keys_are_the_normalised_mean_of_the_augmented_views():
    z = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0], [0.6, 0.8], [0.6, 0.8]])  # two images, 3 views
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    batch = ViewBatch(z, None, None, torch.tensor([4, 4, 4, 2, 2, 2]), index, torch.tensor([0, 1, 2] * 2))
    keys, labels = mean_views(FeatureCache(iter([batch]), 3))
    torch.testing.assert_close(keys, torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, 0.8]]))
    assert labels.tolist() == [4, 2]


def test_without_augmented_views_the_keys_are_the_shots():
    z = torch.nn.functional.normalize(_random(3, 4), dim=-1)
    batch = ViewBatch(z, None, None, torch.arange(3), torch.arange(3), torch.zeros(3, dtype=torch.long))
    keys, labels = mean_views(FeatureCache(iter([batch]), 1))
    torch.testing.assert_close(keys, z)
    assert labels.tolist() == [0, 1, 2]


def test_classes_in_another_order_get_the_same_logits():
    adapter, z = _filled(), _random(5, 4)
    before, texts = adapter(z), adapter.text_features
    adapter.serve(["b", "a"], texts.flip(0))
    torch.testing.assert_close(adapter(z), before.flip(1))


@pytest.mark.parametrize(("is_trained", "count"), [(False, 0), (True, 12)])
def test_only_the_fine_tuned_variant_trains_its_keys(is_trained, count):
    assert sum(p.numel() for p in _filled(is_trained=is_trained).parameters() if p.requires_grad) == count


def test_tip_f_uses_the_published_epsilon(build):  # noqa: F811
    trainer = build("TipAdapterF", options=["OPTIM.NAME", "adamw"])
    assert [group["eps"] for group in trainer.optim.param_groups] == [1e-4]


# ------------------------------------------------------------------------------------------- other classes, other z


def _moved_probe():
    adapter = LinearHead(["a", "b"], _random(2, 4, seed=1), SCALE)
    with torch.no_grad():
        adapter.weight.add_(_random(2, 4, seed=3))
    return adapter


@pytest.mark.parametrize("make", [_moved_probe, _filled])
def test_classes_that_were_not_trained_on_are_zero_shot_to_the_bit(make):
    adapter, z, texts = make(), _random(6, 4), _random(3, 4, seed=5)
    adapter.serve(["c", "b", "d"], texts)
    zero_shot = super(type(adapter), adapter).forward(z)
    assert torch.equal(adapter(z)[:, [0, 2]], zero_shot[:, [0, 2]])
    assert not torch.equal(adapter(z)[:, 1], zero_shot[:, 1])


def test_the_bottleneck_points_where_it_would_on_features_of_another_length():
    torch.manual_seed(0)
    adapter, z = Bottleneck(["a", "b"], _random(2, 8, seed=1), SCALE, ratio=0.2), _random(5, 8)
    raw = 0.2 * (z @ adapter.down.weight.t()).relu().matmul(adapter.up.weight.t()).relu() + 0.8 * z
    torch.testing.assert_close(adapter(z), super(Bottleneck, adapter).forward(raw))
    assert not torch.allclose(adapter(z), super(Bottleneck, adapter).forward(z))


def test_without_its_share_the_bottleneck_is_zero_shot():
    adapter, z = Bottleneck(["a", "b"], _random(2, 8, seed=1), SCALE, ratio=0.0), _random(5, 8)
    torch.testing.assert_close(adapter(z), super(Bottleneck, adapter).forward(z))


def test_the_probe_starts_at_zero_shot_clip(build):  # noqa: F811
    images = tiny.batch()["img"]
    assert torch.equal(build("LinearProbe").model_inference(images), build("ZeroshotCLIP").model_inference(images))


def _bottleneck():
    return Bottleneck(["a", "b"], _random(2, 4, seed=1), SCALE, ratio=0.2)


@pytest.mark.parametrize("make", [_moved_probe, _bottleneck, lambda: _filled(is_trained=True)])
def test_training_and_other_classes_stay_on_the_gpu(make):
    adapter = make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_gpu(adapter)
        z, texts = torch.empty(6, 4, device="cuda:0"), torch.empty(3, 4, device="cuda:0")
        loss = torch.nn.functional.cross_entropy(adapter(z), torch.zeros(6, dtype=torch.long, device="cuda:0"))
        assert loss.device.type == "cuda"
        adapter.rows, adapter.text_features = torch.empty(3, dtype=torch.long, device="cuda:0"), texts
        assert (adapter(z).device.type, tuple(adapter(z).shape)) == ("cuda", (6, 3))


# ---------------------------------------------------------------------------------------------------------- runs


def _renamed(monkeypatch, names):
    import colours

    monkeypatch.setattr(colours, "NAMES", names)


def _logits(trainer):
    trainer.set_model_mode("eval")
    return trainer.model_inference(tiny.batch()["img"])


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_run_on_other_classes_says_what_becomes_of_them(name, build, tmp_path, monkeypatch, capsys):  # noqa: F811
    build(name).train()
    _renamed(monkeypatch, ["red", "pink", "grey"])
    again = ["OUTPUT_DIR", str(tmp_path / "again")]
    trainer = build(name, options=again)
    capsys.readouterr()
    trainer.load_model(str(tmp_path / "out"), epoch=3)
    assert "2 of 3 classes were not trained on: they " in capsys.readouterr().out
    assert trainer.adapter.trained_classnames() == NAMES
    zero_shot = _logits(build("ZeroshotCLIP", options=again))
    is_zero_shot = [torch.equal(a, b) for a, b in zip(_logits(trainer).t(), zero_shot.t(), strict=True)]
    assert is_zero_shot == ([False] * 3 if name == "CLIPAdapter" else [False, True, True])


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_reads_the_cache_and_is_seeded(name, build, tmp_path, capsys):  # noqa: F811
    keys = {"AUGMENT_EPOCHS": 2}
    first = build(name, keys)
    first.train()
    assert "Encoded 12 images x 3 views" in capsys.readouterr().out
    torch.rand(7)  # what else draws numbers must not matter
    second = build(name, keys, ["OUTPUT_DIR", str(tmp_path / "again")])
    second.train()
    assert torch.equal(_logits(first), _logits(second))


def test_tip_adapter_trains_nothing_and_leaves_an_ordinary_checkpoint(build, tmp_path, capsys):  # noqa: F811
    trainer = build("TipAdapter", options=["OPTIM.MAX_EPOCH", 1])
    trainer.train()
    out = capsys.readouterr().out
    assert "Cache of 12 shots; nothing is trained" in out
    assert "epoch [" not in out
    stored = torch.load(tmp_path / "out" / "shot_cache" / "model.pth.tar-1", weights_only=True)
    assert set(stored["state_dict"]) == {"trained_classes", "keys", "labels"}
    assert stored["state_dict"]["labels"].bincount().tolist() == [4, 4, 4]
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (record["trainer"], record["num_test"], record["prec"]) == ("TipAdapter", 12, "fp32")

    tested = build("TipAdapter", options=["OUTPUT_DIR", str(tmp_path / "again")])
    tested.load_model(str(tmp_path / "out"), epoch=1)
    assert torch.equal(_logits(tested), _logits(trainer))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_finished_run_encodes_nothing_again(name, build, tmp_path, capsys):  # noqa: F811
    build(name).train()
    accuracy = json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"]
    capsys.readouterr()
    build(name).train()
    assert "Encoded" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"] == pytest.approx(accuracy)


def test_an_interrupted_run_ends_as_if_it_had_not_been(build, tmp_path):  # noqa: F811
    whole = build("TipAdapterF")
    whole.train()
    part = ["OUTPUT_DIR", str(tmp_path / "part"), "TRAIN.CHECKPOINT_FREQ", 1]
    stopped = build("TipAdapterF", options=part)
    stopped.max_epoch = 2
    stopped.train()
    resumed = build("TipAdapterF", options=part)
    resumed.train()
    assert torch.equal(_logits(resumed), _logits(whole))


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "keys", "options", "words"),
    [
        ("TipAdapter", {"PREC": "half"}, [], "TRAINER.TIPADAPTER.PREC must be one of .*, got 'half'"),
        ("TipAdapterF", {"AUGMENT_EPOCHS": -1}, [], "TRAINER.TIPADAPTERF.AUGMENT_EPOCHS must be 0 or more, got -1"),
        ("CLIPAdapter", {"RATIO": 1.5}, [], "TRAINER.CLIPADAPTER.RATIO must be from 0 to 1, got 1.5"),
        (
            "LinearProbe",
            {},
            ["DATALOADER.TRAIN_X.SAMPLER", "RandomDomainSampler"],
            "SAMPLER must be one of RandomSampler, SequentialSampler, got 'RandomDomainSampler'",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(name, keys, options, words, make_trainer):
    with pytest.raises(ValueError, match=words):
        make_trainer(name, keys, options=options)


def test_a_checkpoint_of_another_method_or_backbone_is_refused(build, tmp_path):  # noqa: F811
    trainer = build("LinearProbe")
    for state, words in (
        ({"keys": torch.zeros(2, 3)}, r"this run needs \['trained_classes', 'weight'\]; which method wrote it"),
        (
            {"weight": torch.zeros(2, 5), "trained_classes": torch.zeros(3, dtype=torch.uint8)},
            r"weight has shape \(2, 5\), this run has \(3, 64\); was it trained with another backbone",
        ),
    ):
        save_checkpoint({"state_dict": state, "epoch": 1}, str(tmp_path / "other" / "linear_probe"))
        with pytest.raises(ValueError, match=words):
            trainer.load_model(str(tmp_path / "other"), epoch=1)
    with pytest.raises(FileNotFoundError, match="name the output folder of a LinearProbe run with --model-dir"):
        trainer.load_model("")
