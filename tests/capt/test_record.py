"""What a run leaves behind: figures, predictions and its sample, by a trainer that answers what the test tells it."""

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from trainers.capt.run import record
from trainers.capt.run.record import RunRecordMixin, code_commit, relative_path

ROOT = Path(__file__).resolve().parents[2]

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.2, 0.3]])
LABELS = torch.tensor([0, 1, 1, 2, 2])
BASE_PROBS = PROBS.roll(1, dims=1)


class Evaluator:
    """Dassl's, as far as a record needs it."""

    def reset(self):
        self.right = []

    def process(self, logits, label):
        self.right.append(logits.argmax(dim=1) == label)

    def evaluate(self):
        return {"accuracy": 100.0 * torch.cat(self.right).float().mean().item(), "macro_f1": 12.5}


class Host:
    """What Dassl's TrainerX has, as far as a record needs it."""

    def before_train(self):
        self.has_begun = True

    def set_model_mode(self, mode):
        self.mode = mode

    def parse_batch_test(self, batch):
        return batch["img"], batch["label"]

    def write_scalar(self, tag, value, step):
        self.scalars[tag] = value, step

    def model_inference(self, input):
        return PROBS[input].log()


class Trainer(RunRecordMixin, Host):
    def __init__(self, out, root, base=False):
        self.cfg = CfgNode(
            {
                "TRAINER": {"NAME": "Made", "MADE": {"PREC": "fp16"}},
                "DATASET": {"NAME": "Drawn", "ROOT": str(root), "NUM_SHOTS": 4, "SUBSAMPLE_CLASSES": "base"},
                "MODEL": {"BACKBONE": {"NAME": "clip.pt"}},
                "INPUT": {"SIZE": (32, 32)},
                "TEST": {"SPLIT": "test", "FINAL_MODEL": "last_step"},
                "SEED": 3,
            }
        )
        item = types.SimpleNamespace
        data = item(
            classnames=["cup", "jug", "vase"],
            train_x=[
                item(classname="cup", impath=str(root / "a/0.png")),
                item(classname="jug", impath="/elsewhere/1.png"),
            ],
            val=None,
        )
        self.dm = item(dataset=data)
        self.output_dir, self.epoch, self.max_epoch, self.device = str(out), 6, 7, torch.device("cpu")
        self.scalars, self.evaluator, self.base = {}, Evaluator(), base
        self.test_loader = [self.batch(root, [0, 1, 2]), self.batch(root, [3, 4])]
        self.val_loader = None

    @staticmethod
    def batch(root, rows):
        return {"img": torch.tensor(rows), "label": LABELS[rows], "impath": [str(root / f"t/{i}.png") for i in rows]}

    def inference(self, input):
        return self.model_inference(input), BASE_PROBS[input].log() if self.base else None


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def test_figures_and_protocol(tmp_path, root):
    trainer = Trainer(tmp_path / "run", root)
    assert trainer.test() == pytest.approx(60.0)
    told = json.loads((tmp_path / "run/results.json").read_text())
    assert told["accuracy"] == pytest.approx(60.0)
    assert told["mean_per_class_accuracy"] == pytest.approx((100 + 50 + 50) / 3)
    assert (told["macro_f1"], told["num_test"], told["num_train"], told["num_classes"]) == (12.5, 5, 2, 3)
    assert (told["trainer"], told["dataset"], told["shots"], told["seed"], told["subsample"]) == (
        *("Made", "Drawn", 4, 3, "base"),
    )
    assert told["protocol"] == "4 shots, base classes"
    assert (told["prec"], told["input_size"], told["backbone"]) == ("fp16", [32, 32], "clip.pt")
    assert (told["confusion"], told["base"], told["choices"]) == (None, None, None)
    assert told["epoch"] == 7  # the last one, where none was loaded
    assert told["config"]["DATASET"]["ROOT"] == str(root)
    assert trainer.scalars["test/accuracy"] == (pytest.approx(60.0), 6)
    assert trainer.mode == "eval"


def test_what_is_in_effect_is_told_and_not_what_was_asked_for(tmp_path, root):
    trainer = Trainer(tmp_path / "run", root)
    trainer.precision, trainer.loaded_epoch, trainer.choices = "fp32", 5, {"shift": {"strength": 1.0}}
    trainer.cfg.DATASET.NUM_SHOTS = -1
    trainer.test()
    told = json.loads((tmp_path / "run/results.json").read_text())
    assert (told["prec"], told["epoch"], told["protocol"]) == ("fp32", 5, "all shots, base classes")
    assert told["choices"] == {"shift": {"strength": 1.0}}


def test_predictions_keep_their_images(tmp_path, root):
    Trainer(tmp_path / "run", root).test()
    with np.load(tmp_path / "run/predictions.npz") as kept:
        assert sorted(kept) == ["impaths", "labels", "predictions", "probs"]
        np.testing.assert_allclose(kept["probs"], PROBS, atol=1e-6)
        assert kept["labels"].tolist() == LABELS.tolist()
        assert kept["predictions"].tolist() == [0, 1, 0, 2, 0]
        assert kept["impaths"].tolist() == [f"t/{i}.png" for i in range(5)]  # from the data root on


def test_a_method_with_a_base_tells_what_it_resolved(tmp_path, root):
    """The base answers 1, 2, 1, 0, 1: right on the third image alone. No pair holds three errors."""
    Trainer(tmp_path / "run", root, base=True).test()
    told = json.loads((tmp_path / "run/results.json").read_text())["confusion"]
    assert told["base_accuracy"] == pytest.approx(20.0)
    assert told["base_mean_per_class_accuracy"] == pytest.approx(50 / 3)
    assert (told["num_pairs"], told["resolved"]) == (0, None)
    with np.load(tmp_path / "run/predictions.npz") as kept:
        assert kept["base_predictions"].tolist() == [1, 2, 1, 0, 1]
        np.testing.assert_allclose(kept["base_probs"], BASE_PROBS, atol=1e-6)


def test_only_the_final_test_leaves_a_record(tmp_path, root, capsys):
    trainer = Trainer(tmp_path / "run", root)
    trainer.val_loader = trainer.test_loader[:1]
    assert trainer.test(split="val") == pytest.approx(200 / 3)
    assert "Evaluate on the *val* set" in capsys.readouterr().out
    assert "val/accuracy" in trainer.scalars
    assert not (tmp_path / "run").exists()


def test_without_validation_images_the_test_set_answers(tmp_path, root, capsys):
    trainer = Trainer(tmp_path / "run", root)
    trainer.test(split="val")
    assert "Evaluate on the *test* set" in capsys.readouterr().out


def test_the_record_is_written_last(tmp_path, root, monkeypatch):
    """Whoever finds results.json finds the predictions, too."""
    monkeypatch.setattr(record, "_save_npz", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Trainer(tmp_path / "run", root).test()
    assert not list((tmp_path / "run").iterdir())


def test_the_sample_names_every_image_that_the_run_may_see(tmp_path, root):
    trainer = Trainer(tmp_path / "run", root)
    trainer.before_train()
    assert trainer.has_begun
    assert json.loads((tmp_path / "run/sample.json").read_text()) == {
        "seed": 3,
        "shots": 4,
        "train_x": {"cup": ["a/0.png"], "jug": ["/elsewhere/1.png"]},
        "val": {},
    }


def test_relative_path():
    assert relative_path("/data/a/b.png", "/data") == "a/b.png"
    assert relative_path("/data/a/../b.png", "/data") == "b.png"
    assert relative_path("/database/b.png", "/data") == "/database/b.png"


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository that tracks the module, as far as :func:`code_commit` can tell."""
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    (folder / "package/record.py").write_text("# code\n")
    (folder / "other.py").write_text("# other\n")
    git(folder, "init", "-q")
    git(folder, "add", "other.py")
    git(folder, "commit", "-q", "-m", "theirs")
    monkeypatch.setattr(record, "__file__", str(folder / "package/record.py"))
    return folder


def test_a_repository_that_does_not_hold_the_code_has_no_commit_for_it(repository):
    """Installed below somebody's repository, or dropped into it: its commit says nothing about this code."""
    assert code_commit() is None


def test_commit_of_tracked_code(repository):
    git(repository, "add", "package/record.py")
    git(repository, "commit", "-q", "-m", "ours")
    commit = code_commit()
    assert len(commit) == 12
    assert int(commit, 16) >= 0
    (repository / "other.py").write_text("# changed\n")
    assert code_commit() == f"{commit}-dirty"


def test_no_commit_outside_of_git(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert code_commit() is None


def test_no_commit_without_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_commit() is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a program's memory is Linux's")
def test_the_peak_of_memory_is_not_that_of_whoever_started_the_run():
    """A notebook or a sweep may be far larger than the run."""
    large = np.ones(100 * 2**20)  # 800 MB
    code = (
        "import compat, torch; from trainers.capt.run import record; print(record._peak_memory_mb(torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 50 < float(done.stdout) < large.nbytes / 2**20
