"""Runs that are killed at any of their writes, and CAPT's that a signal stops, end as if nothing had happened."""

import functools
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY

sys.path[:0] = [str(Path(__file__).parent), *(str(Path(__file__).parent / name) for name in ("capt", "trainers"))]

import colours  # noqa: E402
import killing  # noqa: E402
import test_capt_end_to_end as capt_runs  # noqa: E402
import tiny  # noqa: E402
import tiny_capt  # noqa: E402

from trainers.capt.run.signals import Interrupted  # noqa: E402
from trainers.capt.run.states import states_in  # noqa: E402

NO_CHECKPOINTS = ("TRAIN.CHECKPOINT_FREQ", 0)  # but a state behind every epoch, as is the default
STEPS = ("TRAINER.CAPT.MGDE.BETA", 0.1)  # with experts there is something to train
MODES = {
    "cached": ("TRAINER.CAPT.CACHE.VIEWS", 2),
    "cached, a worker": ("TRAINER.CAPT.CACHE.VIEWS", 2, "DATALOADER.NUM_WORKERS", 1),
    "cached, two workers": ("TRAINER.CAPT.CACHE.VIEWS", 2, "DATALOADER.NUM_WORKERS", 2),
    "not cached": ("TRAINER.CAPT.CACHE.VIEWS", 0),
    "not cached, a worker": ("TRAINER.CAPT.CACHE.VIEWS", 0, "DATALOADER.NUM_WORKERS", 1),
    "not cached, two workers": ("TRAINER.CAPT.CACHE.VIEWS", 0, "DATALOADER.NUM_WORKERS", 2),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    if "TinyPictures" not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(capt_runs.TinyPictures)
    folder = tmp_path_factory.mktemp("tiny")
    tiny_capt.draw_pictures(folder / "data", capt_runs.CLASSES, 9)
    torch.save(tiny_capt.clip_state(), folder / "clip.pt")
    torch.save(tiny.clip_state(), folder / "small.pt")
    return folder


def capt(files, out, *more):
    """With encoded images of its own, so that every run writes the same files; a folder with a dot is not compared."""
    features = ("TRAINER.CAPT.CACHE.DIR", str(out / ".features"))
    return capt_runs.build(files, out, *NO_CHECKPOINTS, *STEPS, *features, *more)


DEEP = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2}
OTHERS = {
    "CoOp": {"N_CTX": 4},
    "CoCoOp": {"CTX_INIT": "a photo of a"},
    "IVLP": DEEP,
    "VPT": {"N_CTX_VISION": 2},
    "PromptSRC": DEEP | {"GPA_MEAN": 2, "GPA_STD": 1},
    "PromptKD": {"PROMPT_DEPTH_VISION": 2},
}


def maple(files, out, *more):
    return on_colours("MaPLe", {"PROMPT_DEPTH": 2}, files, out, *more)


def on_colours(name, keys, files, out, *more):
    options = [
        "OUTPUT_DIR",
        str(out),
        "OPTIM.MAX_EPOCH",
        2,
        "INPUT.TRANSFORMS",
        ("random_flip", "normalize"),
        *NO_CHECKPOINTS,
        *more,
    ]
    return colours.build(files, files / "small.pt", name, keys, options)


def train(build, files, out, *more):
    build(files, out, *more).train()


def killed_everywhere(build, files, tmp_path, numbers, points=killing.POINTS, more=()):
    """Kill at each of these writes, go on, and compare with a run that nothing stopped; returns how many there were."""
    number = straight(build, files, tmp_path, more)
    for this in range(number) if numbers is None else numbers(number):
        for point in points:
            killed_once(build, files, tmp_path, this, point, more)
    return number


def straight(build, files, tmp_path, more):
    """Count the writes of a run that nothing stops."""
    return killing.count_writes(lambda: train(build, files, tmp_path / "straight", *more))


def killed_once(build, files, tmp_path, number, point, more):
    out = tmp_path / "killed"
    shutil.rmtree(out, ignore_errors=True)
    killing.killed_at(lambda: train(build, files, out, *more), number, point)
    killing.finished(lambda: train(build, files, out, *more))
    killing.assert_same(tmp_path / "straight", out)


def test_maple_killed_amid_a_state(files, tmp_path):
    assert killed_everywhere(maple, files, tmp_path, lambda number: [1], ["amid"]) > 5


def test_capt_killed_behind_its_last_checkpoint(files, tmp_path):
    """The confusion features come before the checkpoint that they belong to, so no checkpoint is without them."""
    number = killed_everywhere(capt, files, tmp_path, lambda number: [number // 2], ["before"])
    assert number > 10


def test_a_disk_that_fills_up_ends_the_run_and_leaves_its_last_state(files, tmp_path):
    options = ("OPTIM.MAX_EPOCH", 3)
    train(maple, files, tmp_path / "straight", *options)

    def filled():
        trainer = maple(files, tmp_path / "filled", *options)
        step = trainer.forward_backward

        def filling(batch):
            if trainer.epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
            return step(batch)

        trainer.forward_backward = filling
        try:
            trainer.train()
        except OSError as error:
            return 5 if error.filename.endswith("resume/epoch_0002_batch_00000.pt") else 6

    assert killing.ended(killing.started(filled)) == 5
    assert [tuple(position) for position, _ in states_in(tmp_path / "filled")] == [(1, 0)]
    train(maple, files, tmp_path / "filled", *options)
    killing.assert_same(tmp_path / "straight", tmp_path / "filled")


@pytest.mark.slow
def test_maple_killed_at_every_write(files, tmp_path):
    assert killed_everywhere(maple, files, tmp_path, None) > 5


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_others_killed_at_every_write(files, tmp_path, name, workers):
    """Before, amid and behind in turns; the best epoch's files are among the writes."""
    keys = OTHERS[name] | (tiny.save_teacher(files / "teacher") if name == "PromptKD" else {})
    build = functools.partial(on_colours, name, keys)
    more = ("TEST.FINAL_MODEL", "best_val", "DATALOADER.NUM_WORKERS", workers, "TRAINER.MODAL", "cross")
    number = straight(build, files, tmp_path, more)
    assert number > 5
    for this in range(number):
        killed_once(build, files, tmp_path, this, killing.POINTS[this % 3], more)


@pytest.mark.slow
def test_capt_killed_at_every_write(files, tmp_path):
    assert killed_everywhere(capt, files, tmp_path, None, more=MODES["cached"]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(MODES)[1:])
def test_capt_killed_at_some_writes(files, tmp_path, mode):
    killed_everywhere(capt, files, tmp_path, lambda number: range(number // 3, number, 3), ["behind"], MODES[mode])


# ---- CAPT and signals ----


def stop_in(trainer, epoch, batch):
    step = trainer.forward_backward

    def stopped(data):
        if (trainer.epoch, trainer.batch_idx) == (epoch, batch):
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(data)

    trainer.forward_backward = stopped
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.code == 128 + signal.SIGUSR1


@pytest.mark.parametrize("mode", ["cached", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MODES)[1:])])
def test_capt_stopped_in_an_epoch(files, tmp_path, mode, capsys):
    """Between two reports, so that the figures since the last one must be kept as well."""
    more = (*MODES[mode], "TRAIN.PRINT_FREQ", 3)
    train(capt, files, tmp_path / "straight", *more)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch [2/2] batch [3/4]")]
    stop_in(capt(files, tmp_path / "stopped", *more), 1, 0)
    assert [tuple(position) for position, _ in states_in(tmp_path / "stopped")] == [(1, 1), (1, 0)]
    capsys.readouterr()
    train(capt, files, tmp_path / "stopped", *more)
    killing.assert_same(tmp_path / "straight", tmp_path / "stopped")
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch [2/2] batch [3/4]")]
    assert figures(again) == figures(lines)


def figures(lines):
    (line,) = lines
    return line.partition(" loss ")[2].partition(" eta ")[0]


def test_a_signal_while_the_bank_is_built_ends_at_once(files, tmp_path, capsys):
    trainer = capt(files, tmp_path)
    make = trainer._make_bank

    def signalled():
        os.kill(os.getpid(), signal.SIGUSR2)
        return make()

    trainer._make_bank = signalled
    with pytest.raises(Interrupted):
        trainer.train()
    assert "SIGUSR2: stopped before there was anything to save" in capsys.readouterr().out
    assert not (tmp_path / "confusion_bank.safetensors").exists()
    train(capt, files, tmp_path)
    assert (tmp_path / "results.json").is_file()


def test_capt_says_which_term_is_no_number(files, tmp_path):
    trainer = capt(files, tmp_path, "OPTIM.LR", 1e30)
    with pytest.raises(FloatingPointError, match=r"In epoch \d, batch \d, loss_\w+ is (nan|inf).*; .*lower OPTIM.LR"):
        trainer.train()
