"""CAPT on what a host left, beyond training and testing: it is stopped and goes on, and is served."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 6  # enough that a signal behind the first reaches a training that still goes on
EVERY = 20  # of the test images that are asked for again
STEPS = ("OPTIM.MAX_EPOCH", EPOCHS, "TRAIN.KEEP_MINUTES", 0.0)


def resumes(place, folder, argv):
    """Whether CAPT, stopped by SIGTERM while it trains, goes on to a straight run's weights, bank and predictions.

    Args:
        place: ``base_runs.Place``.
        folder: takes the two runs.
        argv: what follows ``train.py --output-dir OUT``.
    """
    straight, stopped = folder / "straight", folder / "stopped"
    place.call(ROOT, "train.py", "--output-dir", straight, *argv, *STEPS)
    command = [sys.executable, "train.py", "--output-dir", str(stopped), *map(str, argv), *map(str, STEPS)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=place.environment(), **silent)
    try:
        while process.poll() is None and not list((stopped / "resume").glob("*.pt")):
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM, f"{stopped} was not stopped while it trained"
    finally:
        process.kill()
    log = place.call(ROOT, "train.py", "--output-dir", stopped, *argv, *STEPS)
    assert "Resuming behind epoch" in log, log[-1000:]
    return _bytes(straight) == _bytes(stopped)


def _bytes(run):
    """What a run is asked for later: weights, bank, predictions."""
    files = [*(run / "capt").glob("model*"), *run.glob("confusion_bank.*"), run / "predictions.npz"]
    assert len(files) >= 4, files
    return {path.name: path.read_bytes() for path in files}


def served(place, trained, tested):
    """Of how many test images ``capt.load`` and ``capt predict`` say what the run's own test said; (same, same, of).

    Args:
        place: ``base_runs.Place``.
        trained: run folder of the training.
        tested: run folder of the test, of the same classes or of others.
    """
    import trainers.capt as capt

    names = json.loads((tested / "results.json").read_text())["classnames"]
    with np.load(tested / "predictions.npz") as stored:
        pictures = [str(place.data / path) for path in stored["impaths"][::EVERY]]
        expected = [names[label] for label in stored["predictions"][::EVERY]]
    loaded = capt.load(trained).predict(pictures, class_names=names, top_k=1)
    command = ("-m", "capt_tools", "predict", "--run", trained, "--format", "jsonl", "--device", "cpu", *pictures)
    lines = place.call(ROOT, *command, "--classes", *names).splitlines()
    answers = [json.loads(line)["top"][0]["class"] for line in lines]
    same = sum(answer.class_name == name for answer, name in zip(loaded, expected, strict=True))
    return same, sum(a == b for a, b in zip(answers, expected, strict=True)), len(expected)
