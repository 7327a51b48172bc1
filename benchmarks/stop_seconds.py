"""Seconds from a signal to the end of the process, for every trainer, on the demo's data with real processes.

    python benchmarks/stop_seconds.py --data data

Each run is stopped three times, and goes on from what it saved: in its first epochs without workers, then with
two of them for a loader, and in the test behind its last epoch. Prints a table; a run that ends otherwise than by the
signal, or does not say where it stopped, ends the benchmark.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIP = "assets/glyphs_clip.pt"
DEEP: dict[str, object] = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2}
# What is timed -> its trainer, and keys of the trainer's node. CAPT has steps to take where its experts are on.
RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "CoOp": ("CoOp", {}),
    "CoCoOp": ("CoCoOp", {}),
    "MaPLe": ("MaPLe", {}),
    "IVLP": ("IVLP", DEEP),
    "VPT": ("VPT", {"PROMPT_DEPTH_VISION": 2}),
    "PromptSRC": ("PromptSRC", {}),
    "PromptKD": ("PromptKD", {"TEACHER_NAME": CLIP, "PROMPT_DEPTH_VISION": 2}),
    "CAPT, cached": ("CAPT", {"MGDE.BETA": 0.1}),
    "CAPT, not cached": ("CAPT", {"MGDE.BETA": 0.1, "CACHE.VIEWS": 0}),
}
EPOCHS = 3


def command(run: str, data: Path, out: Path, workers: int, **keys: object) -> list[str]:
    """The command line of a run in ``out``."""
    trainer, mine = RUNS[run]
    yaml = ROOT / "configs/trainers" / trainer / "demo.yaml"
    if not yaml.is_file():  # its schedule and pictures
        yaml = ROOT / "configs/trainers/MaPLe/demo.yaml"
    words: list[object] = [sys.executable, "train.py", "--root", data, "--seed", 1, "--trainer", trainer]
    words += ["--config-file", yaml, "--dataset-config-file", "configs/datasets/glyphs.yaml", "--backbone", CLIP]
    words += ["--output-dir", out, "INPUT.SIZE", "(48, 48)", "DATASET.NUM_SHOTS", 16, "TRAIN.PRINT_FREQ", 1]
    words += ["DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.NUM_WORKERS", workers, "OPTIM.MAX_EPOCH", EPOCHS]
    for key, value in {"PREC": "fp32", **mine, **keys}.items():
        words += [f"TRAINER.{trainer.upper()}.{key}", value]
    return [str(word) for word in words]


def stop(words: Sequence[str], log: Path, mark: str, seconds: float = 300) -> float:
    """Start a process, send SIGTERM when its log holds ``mark``; seconds until it has ended.

    Raises:
        RuntimeError: it ended before, took too long, or ended otherwise than by the signal.
    """
    with log.open("w") as file, subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            until = time.monotonic() + seconds
            while not re.search(mark, log.read_text()):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f'"{mark}" did not come in "{log}"')
                time.sleep(0.01)
            start = time.monotonic()
            process.terminate()
            code = process.wait(seconds)
            took = time.monotonic() - start
        finally:
            process.kill()
    if code != 128 + signal.SIGTERM or not log.read_text().splitlines()[-1].startswith("SIGTERM: stopped"):
        raise RuntimeError(f'it ended by {code}; see "{log}"')
    return took


def teacher(data: Path, out: Path) -> Path:
    """Train PromptKD's teacher for an epoch on one shot a class; its folder."""
    words = command("PromptSRC", data, out, 0)
    quick = ["OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1", "TRAINER.PROMPTSRC.GPA_MEAN", "1"]
    subprocess.run([*words, *quick], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


def stop_seconds(run: str, data: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds in an epoch, in one with two workers, and in the last test."""
    keys = {"TEACHER_DIR": teacher(data, folder / "teacher")} if run == "PromptKD" else {}
    out, log = folder / "run", folder / "log.txt"
    first = stop(command(run, data, out, 0, **keys), log, r"epoch \[1/3\] batch \[2/")
    second = stop(command(run, data, out, 2, **keys), log, r"epoch \[2/3\] batch \[2/")
    last = stop(command(run, data, out, 0, **keys), log, "Evaluate on the")
    return first, second, last


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of data sets; the glyphs are drawn there"
    )
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    args = parser.parse_args(argv)
    print("| seconds to the end | in an epoch | two workers | in the last test |\n|---|--:|--:|--:|", flush=True)
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            seconds = stop_seconds(run, args.data.resolve(), Path(folder))
        print(f"| {run} | " + " | ".join(f"{value:.1f}" for value in seconds) + " |", flush=True)


if __name__ == "__main__":
    main()
