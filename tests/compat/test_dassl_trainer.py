"""The trainer life cycle: log lines, files, resume."""

import re
import shutil

import compat

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY, SimpleNet, SimpleTrainer, TrainerBase, TrainerXU, build_trainer
from dassl.modeling import BACKBONE_REGISTRY, Backbone
from dassl_toy import CompatToyTrainer, toy_cfg, train, weights

pytestmark = pytest.mark.skipif(compat.DASSL != "bundled", reason="an installed Dassl is in use")


def test_a_run_prints_and_writes_what_dassl_does(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, OPTIM__MAX_EPOCH=2, TRAIN__PRINT_FREQ=2, TRAIN__CHECKPOINT_FREQ=0)
    trainer = train(cfg)
    out = tmp_path / "out"
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Loading evaluator: Classification")
    assert lines[0] == "Loading trainer: CompatToyTrainer"
    assert lines[start + 1 : start + 3] == [
        "No checkpoint found, train from scratch",
        f"Initialize tensorboard (log_dir={out}/tensorboard)",
    ]
    epochs = lines[start + 3 : start + 7]
    number = r"\d+\.\d{4}"
    pattern = (
        r"epoch \[(\d)/2\] batch \[(\d)/4\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
        rf"loss {number} \({number}\) acc {number} \({number}\) lr (\d\.\d{{4}}e[-+]\d\d) eta \d+:\d\d:\d\d"
    )
    found = [re.fullmatch(pattern, line).groups() for line in epochs]
    # On an epoch's last batch the rate is the next epoch's already.
    assert found == [
        ("1", "2", "1.0000e-05"),
        ("1", "4", "1.0000e-01"),
        ("2", "2", "1.0000e-01"),
        ("2", "4", "5.0000e-02"),
    ]
    assert lines[start + 7 : start + 12] == [
        f"Checkpoint saved to {out}/learner/model.pth.tar-2",
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "=> result",
    ]
    assert re.fullmatch(r"Elapsed: 0:00:\d\d", lines[-1])
    assert sorted(p.name for p in (out / "learner").iterdir()) == ["checkpoint", "model.pth.tar-2"]
    assert any(p.name.startswith("events.out.tfevents") for p in (out / "tensorboard").iterdir())
    checkpoint = torch.load(out / "learner" / "model.pth.tar-2", weights_only=True)
    assert list(checkpoint)[:5] == ["state_dict", "epoch", "optimizer", "scheduler", "val_result"]
    assert checkpoint["epoch"] == 2
    assert checkpoint["val_result"] is None
    assert torch.equal(checkpoint["state_dict"]["2.weight"], weights(trainer))


def test_fewer_batches_than_print_freq_prints_every_batch(tmp_path, capsys):
    train(toy_cfg(tmp_path, OPTIM__MAX_EPOCH=1, TEST__NO_TEST=True))
    assert len(re.findall(r"^epoch ", capsys.readouterr().out, re.MULTILINE)) == 4


@pytest.mark.parametrize("epochs_done", [1, 3])
def test_resumed_equals_uninterrupted(tmp_path, epochs_done):
    straight = train(toy_cfg(tmp_path, "straight"))
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    (tmp_path / "resumed" / "learner" / "checkpoint").write_text(f"model.pth.tar-{epochs_done}\n")
    resumed = train(toy_cfg(tmp_path, "resumed"), seed=99)
    assert resumed.start_epoch == epochs_done
    assert resumed.rates == straight.rates[4 * epochs_done :]
    assert torch.equal(weights(resumed), weights(straight))


def test_resumed_equals_uninterrupted_with_best_val_and_workers(tmp_path, capsys):
    settings = {"TEST__FINAL_MODEL": "best_val", "DATALOADER__NUM_WORKERS": 1, "OPTIM__MAX_EPOCH": 3}
    straight = train(toy_cfg(tmp_path, "straight", **settings))
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    (tmp_path / "resumed" / "learner" / "checkpoint").write_text("model.pth.tar-2\n")
    capsys.readouterr()
    resumed = train(toy_cfg(tmp_path, "resumed", **settings), seed=99)
    assert resumed.best_result == straight.best_result
    last = [torch.load(tmp_path / d / "learner" / "model.pth.tar-3") for d in ("straight", "resumed")]
    assert torch.equal(*(c["state_dict"]["2.weight"] for c in last))
    assert "Deploy the model with the best val performance" in capsys.readouterr().out


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_does_not_change_the_weights(tmp_path, num_workers):
    plain = train(toy_cfg(tmp_path, "plain", OPTIM__MAX_EPOCH=3))
    other = train(toy_cfg(tmp_path, "other", OPTIM__MAX_EPOCH=3, DATALOADER__NUM_WORKERS=num_workers))
    assert torch.equal(weights(plain), weights(other))


def test_a_finished_run_is_only_tested_again(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, OPTIM__MAX_EPOCH=1)
    first = train(cfg)
    capsys.readouterr()
    second = train(cfg, seed=5)
    out = capsys.readouterr().out
    assert torch.equal(weights(first), weights(second))
    assert "will resume training" in out
    assert "epoch [" not in out
    assert "=> result" in out
    assert second.epoch == 0


def test_checkpoints_of_dassl_itself_resume(tmp_path):
    cfg = toy_cfg(tmp_path, OPTIM__MAX_EPOCH=2)
    train(cfg)
    path = tmp_path / "out" / "learner" / "model.pth.tar-2"
    checkpoint = torch.load(path)
    for key in ("rng_state", "best_result"):
        del checkpoint[key]
    torch.save(checkpoint, path)
    trainer = train(toy_cfg(tmp_path, OPTIM__MAX_EPOCH=3))
    assert trainer.start_epoch == 2
    assert trainer.best_result == -float("inf")


def test_an_empty_model_folder_trains_from_scratch(tmp_path, capsys):
    (tmp_path / "out" / "learner").mkdir(parents=True)
    train(toy_cfg(tmp_path, OPTIM__MAX_EPOCH=1))
    assert "No checkpoint found, train from scratch" in capsys.readouterr().out


def test_models_of_different_epochs_are_refused(tmp_path):
    class Two(TrainerBase):
        def __init__(self):
            super().__init__()
            for name in ("a", "b"):
                self.register_model(name, torch.nn.Linear(1, 1))

    trainer = Two()
    trainer.save_model(0, str(tmp_path))
    trainer.save_model(1, str(tmp_path))
    assert Two().resume_model_if_exist(str(tmp_path)) == 2
    (tmp_path / "b" / "checkpoint").write_text("model.pth.tar-1\n")
    with pytest.raises(ValueError, match="are of different epochs"):
        Two().resume_model_if_exist(str(tmp_path))


def test_load_model(tmp_path, capsys):
    cfg = toy_cfg(tmp_path, OPTIM__MAX_EPOCH=1)
    trained = train(cfg)
    trainer = build_trainer(cfg)
    capsys.readouterr()
    trainer.load_model("")
    assert capsys.readouterr().out.startswith("Note that load_model() is skipped as no pretrained model is given")
    trainer.load_model(str(tmp_path / "out"), epoch=1)
    path = tmp_path / "out" / "learner" / "model.pth.tar-1"
    assert capsys.readouterr().out == f"Load {path} to learner (epoch=1, val_result=None)\n"
    assert torch.equal(weights(trainer), weights(trained))
    with pytest.raises(FileNotFoundError, match=r"No model at .*model-best\.pth\.tar"):
        trainer.load_model(str(tmp_path / "out"))
    trainer.test()
    assert trainer._writer is None
    trainer.save_model(0, str(tmp_path / "out"), val_result=61.25, model_name="model-best.pth.tar")
    trainer.load_model(str(tmp_path / "out"))
    assert "(epoch=1, val_result=61.2)" in capsys.readouterr().out


def test_test_splits(tmp_path, capsys):
    trainer = build_trainer(toy_cfg(tmp_path))
    capsys.readouterr()
    accuracy = trainer.test(split="val")
    out = capsys.readouterr().out
    assert out.startswith("Evaluate on the *val* set\n=> result\n* total: 6\n")
    assert f"* accuracy: {accuracy:.1f}%" in out
    assert not trainer.model.training
    trainer.val_loader = None
    trainer.test(split="val")
    assert capsys.readouterr().out.startswith("Evaluate on the *test* set\n")


def test_damaged_image_is_named(tmp_path):
    cfg = toy_cfg(tmp_path, DATALOADER__NUM_WORKERS=1)
    trainer = build_trainer(cfg)
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"Cannot read the image .*3\.png"):
        trainer.test()


def test_build_trainer(tmp_path, capsys):
    cfg = toy_cfg(tmp_path)
    cfg.TRAINER.NAME = "CompatToyTrainr"
    with pytest.raises(ValueError, match=r"do you mean \[CompatToyTrainer\]"):
        build_trainer(cfg)
    assert isinstance(build_trainer(cfg, name="CompatToyTrainer"), CompatToyTrainer)
    assert capsys.readouterr().out.startswith("Loading trainer: CompatToyTrainer\n")


def test_register_model_errors():
    class Early(TrainerBase):
        def __init__(self):
            self.register_model("m", torch.nn.Linear(1, 1))

    with pytest.raises(AttributeError, match=r"Cannot assign model before super\(\).__init__\(\) call"):
        Early()
    trainer = TrainerBase()
    trainer.register_model("m", torch.nn.Linear(1, 1))
    with pytest.raises(AssertionError, match="Found duplicate model names"):
        trainer.register_model("m", torch.nn.Linear(1, 1))
    assert trainer.get_model_names("m") == ["m"]
    with pytest.raises(KeyError):
        trainer.set_model_mode("sleep")
    with pytest.raises(AssertionError, match="no model is registered as 'x'"):
        trainer.get_model_names("x")


def test_detect_anomaly():
    trainer = TrainerBase()
    with pytest.raises(FloatingPointError, match="Loss is infinite or NaN!"):
        trainer.model_backward_and_update(torch.tensor(float("nan"), requires_grad=True))


class TinyBackbone(Backbone):
    def __init__(self, **kwargs):
        super().__init__()
        self._out_features = 12

    def forward(self, x):
        return x.flatten(1)[:, :12]


def tiny_backbone(**kwargs):
    return TinyBackbone()


def test_simple_trainer_builds_a_simple_net(tmp_path, capsys):
    BACKBONE_REGISTRY.register(tiny_backbone, force=True)
    cfg = toy_cfg(
        tmp_path, MODEL__BACKBONE__NAME="tiny_backbone", MODEL__HEAD__NAME="mlp", MODEL__HEAD__HIDDEN_LAYERS=(7,)
    )
    trainer = SimpleTrainer(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5:] == ["Building model", "Backbone: tiny_backbone", "Head: mlp", "# params: 129",
                          "Loading evaluator: Classification"]  # fmt: skip
    assert isinstance(trainer.model, SimpleNet)
    logits, features = trainer.model(torch.zeros(2, 3, 8, 8), return_feature=True)
    assert logits.shape == (2, 3)
    assert features.shape == (2, 7)
    assert trainer.model.fdim == 7


def test_trainer_xu_restarts_the_shorter_loader(tmp_path):
    class XU(TrainerXU):
        def build_model(self):
            self.train_loader_u = self.train_loader_x
            self.register_model("m", torch.nn.Linear(1, 1), torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0))
            self.seen = 0

        def forward_backward(self, batch_x, batch_u):
            image, label, image_u = self.parse_batch_train(batch_x, batch_u)
            assert image.shape == image_u.shape
            assert len(label) == 5
            self.seen += 1
            return {"loss": 1.0}

    TRAINER_REGISTRY.register(XU, force=True)
    cfg = toy_cfg(tmp_path, TRAINER__NAME="XU")
    trainer = build_trainer(cfg)
    trainer.run_epoch()
    assert trainer.seen == 4
    cfg.TRAIN.COUNT_ITER = "both"
    with pytest.raises(ValueError, match="COUNT_ITER must be one of"):
        trainer.run_epoch()
