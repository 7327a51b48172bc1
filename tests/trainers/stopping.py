"""Runs on the data set of a dozen pictures that a signal stops, and whether two runs left the same."""

import json
import os
import signal

import colours
import pytest

from trainers.capt.run.signals import Interrupted

DEEP = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2}
METHODS = {
    "CoOp": {"N_CTX": 4},
    "CoCoOp": {"CTX_INIT": "a photo of a"},
    "MaPLe": {"PROMPT_DEPTH": 2},
    "IVLP": DEEP,
    "VPT": {"N_CTX_VISION": 2},
    "PromptSRC": DEEP,
    "PromptKD": {"PROMPT_DEPTH_VISION": 2},
    "LinearProbe": None,
    "CLIPAdapter": None,
    "TipAdapter": None,
    "TipAdapterF": None,
}
# Draws from all generators in the main process, and a schedule with a warm-up in front.
RANDOM = ["INPUT.TRANSFORMS", ("random_flip", "normalize"), "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant"]


def builder(folder, clip_path, teacher):
    """``build(name, where, *options)``: a trainer whose folder is ``<folder>/<where>/out``.

    Args:
        folder: of all runs.
        clip_path: the small CLIP's file.
        teacher: the keys that name PromptKD's teacher.
    """

    def build(name, where, *options):
        (folder / where).mkdir(exist_ok=True)
        keys = (teacher if name == "PromptKD" else {}) | (METHODS[name] or {})
        common = ["DATASET.ROOT", str(folder), "TRAINER.MODAL", "cross"]
        return colours.build(folder / where, clip_path, name, keys, [*RANDOM, *common, *options])

    return build


def stop_in(trainer, epoch, batch, signum=signal.SIGTERM):
    """Let the signal come in the middle of a step."""
    step = trainer.forward_backward

    def stopped(data):
        if (trainer.epoch, trainer.batch_idx) == (epoch, batch):
            os.kill(os.getpid(), signum)
        return step(data)

    trainer.forward_backward = stopped
    return trainer


def stop_behind(trainer, hook, times):
    """Let the signal come when a method of the trainer has been through so many times."""
    method, left = getattr(trainer, hook), [times]

    def stopped(*args, **kwargs):
        result = method(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(trainer, hook, stopped)
    return trainer


def stopped(trainer, code=128 + signal.SIGTERM):
    """Train until the signal; the exit code must tell which."""
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.code == code
    return trainer


def same_files(one, other):
    """Checkpoints and predictions are equal byte by byte, records but for times and folders; nothing else is there."""
    for folder in (one, other):
        assert not (folder / "resume").exists()
    named = [
        sorted(p.relative_to(f).as_posix() for p in f.rglob("*") if "tensorboard" not in p.parts) for f in (one, other)
    ]
    assert named[0] == named[1]
    for name in named[0]:
        if (one / name).is_dir() or name == "results.json":
            continue
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert record(one) == record(other)


def record(folder):
    found = json.loads((folder / "results.json").read_text())
    for key in ("seconds", "images_per_second_test", "num_encoded_before", "peak_memory_mb"):
        del found[key]
    del found["config"]["OUTPUT_DIR"]
    return found
