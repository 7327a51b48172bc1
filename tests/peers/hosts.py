"""Hosts for the drop-in: copies of other repositories, small real-layout data, and their own train.py as a process."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["accordion", "airplanes", "anchor", "ant", "barrel", "bass"]  # three base and three new classes
HOSTS = ["KaiyangZhou+CoOp", "muzairkhattak+multimodal-prompt-learning", "muzairkhattak+PromptSRC"]
DASSL = "KaiyangZhou+Dassl.pytorch"
SIDE = 32


def draw_caltech(root):
    """Caltech101's layout with six classes; two and two of them look alike, so that there is something to confuse."""
    source = np.random.RandomState(0)
    for label, name in enumerate(FOLDERS):
        images = root / "caltech-101" / "101_ObjectCategories" / name
        images.mkdir(parents=True)
        for number in range(14):
            pixels = source.randint(0, 120, (SIDE, SIDE, 3))
            pixels[..., label // 2] += 80
            pixels[:, : SIDE // 2] += 20 * (label % 2)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / f"image_{number:04d}.png")
    for path in sorted(root.rglob("*.png")):  # lossless pixels under Caltech's names
        path.rename(path.with_suffix(".jpg"))
    return root


def digest(folder):
    """SHA-256 of a tree: names, contents and permissions."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.stat().st_mode}".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def copy_host(peers, name, target):
    """A host without the files that git or Python add."""
    return Path(shutil.copytree(Path(peers) / name, target, ignore=shutil.ignore_patterns(".git", "__pycache__")))


def python(folder, script, *arguments, dassl=None, check=True):
    """Run ``script`` inside ``folder`` and return the process; ``dassl`` is put on the path."""
    path = os.pathsep.join(str(p) for p in ([dassl] if dassl else []))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done


def flags(
    data,
    clip,
    out,
    trainer,
    *,
    seed=1,
    subsample="base",
    evaluate="",
    transforms="('random_flip', 'normalize')",
    epochs=2,
):
    """The command line of a small run, the same in every host."""
    argv = ["--root", data, "--seed", seed, "--trainer", trainer, "--backbone", clip, "--output-dir", out]
    argv += ["--dataset-config-file", "configs/datasets/caltech101.yaml"]
    if evaluate:
        argv += ["--model-dir", evaluate, "--load-epoch", epochs, "--eval-only"]
    argv += ["INPUT.SIZE", f"({SIDE}, {SIDE})", "INPUT.TRANSFORMS", transforms, "USE_CUDA", "False"]
    argv += ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.TEST.BATCH_SIZE", 50]
    argv += ["OPTIM.NAME", "sgd", "OPTIM.LR", 0.02, "OPTIM.MAX_EPOCH", epochs, "OPTIM.LR_SCHEDULER", "cosine"]
    argv += ["OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant", "OPTIM.WARMUP_CONS_LR", 1e-3]
    argv += ["TRAIN.PRINT_FREQ", 1, "DATASET.NUM_SHOTS", 4, "DATASET.SUBSAMPLE_CLASSES", subsample]
    return [*argv, f"TRAINER.{trainer.upper()}.PREC", "fp32"]
