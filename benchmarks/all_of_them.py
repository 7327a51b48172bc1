"""Every benchmark one after the other within a given time, and one JSON of all figures; ``gpu.sh`` calls it.

python benchmarks/all_of_them.py --device cuda --output gpu.json
python benchmarks/all_of_them.py --device cpu --small --output trial.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import drawn
import torch

from trainers.capt.run.files import write_json
from trainers.capt.run.record import code_commit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


# 16-shot ImageNet by its sizes, with experts, whose patch tokens are what takes memory.
IMAGENET = ["--classes", "1000", "--shots", "16", "--sizes", "vit_b16", "--opts", "TRAINER.CAPT.PREC", "fp16"]
IMAGENET += ["TRAINER.CAPT.MGDE.BETA", "0.1", "DATALOADER.NUM_WORKERS", "16"]


def commands(device: str, is_small: bool, folder: Path) -> dict[str, list[str]]:
    """Each benchmark's file and arguments, all but the name of its JSON file.

    Args:
        device: cuda or cpu.
        is_small: the smallest sizes, to try the benchmarks themselves.
        folder: for what they draw.
    """
    sweep = ["--data", str(folder / "data"), "--dataset", "glyphs", "--size", "(48, 48)", "--seeds", "1"]
    sweep += ["--backbone", str(ROOT / "assets/glyphs_clip.pt")]
    if is_small:
        return {
            "steps": [
                "steps",
                "--device",
                device,
                "--sizes",
                "tiny",
                "--classes",
                "12",
                "--batch",
                "2",
                "--turns",
                "1",
            ],
            "classes": ["classes", "--device", device, "--classes", "4"],
            "bank": ["bank", "--device", device, "--entries", "1000", "3000", "--repeats", "1"],
            "sweep": ["sweep", *sweep, "--methods", "zsclip"],
            "imagenet": ["classes", "--device", device, "--classes", "4", *IMAGENET[2:4], *IMAGENET[6:]],
        }
    return {
        "steps": ["steps", "--device", device, "--turns", "9"],
        "bank": ["bank", "--device", device, "--entries", "1000", "10000", "100000", "1000000"],
        "classes": ["classes", "--device", device, "--classes", "100", "1000"],
        "imagenet": ["classes", "--device", device, *IMAGENET],
        "sweep": ["sweep", *sweep, "--methods", "zsclip tipadapter capt:ZeroshotCLIP"],
    }


def run(name: str, words: list[str], path: Path, seconds: float) -> dict[str, Any]:
    """One benchmark's figures, or what it said where it broke down or ran out of time."""
    script, *arguments = words
    output = ["--json" if script == "sweep" else "--output", str(path)]
    command = [sys.executable, str(HERE / f"{script}.py"), *output, *arguments]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        try:
            code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = None
        log.seek(0)
        said = log.read()
    found = json.loads(path.read_text()) if path.is_file() else None
    about = {"seconds": time.monotonic() - start, "returned": code, "figures": found}
    print(said if code == 0 else said[-2000:])
    print(
        f"{name}: {'ran out of time' if code is None else f'ended with {code}'}, {about['seconds']:.0f} s\n", flush=True
    )
    return about if code == 0 else {**about, "said": said[-2000:]}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file for the figures")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the smallest sizes, to try the benchmarks themselves")
    parser.add_argument("--seconds", type=float, default=460, help="for all of them; who comes too late is left out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run all of them; 1 where one broke down or ran out of time."""
    args = arguments(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        print(f"error: no GPU for --device {args.device}; torch {torch.__version__} sees none", file=sys.stderr)
        return 2
    end = time.monotonic() + args.seconds
    found: dict[str, Any] = {"commit": code_commit(), "machine": drawn.machine(args.device)}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in commands(args.device, args.small, Path(folder)).items():
            found[name] = run(name, words, Path(folder) / f"{name}.json", max(1.0, end - time.monotonic()))
            write_json(args.output, found)
    print(f"figures in {args.output}")
    return 0 if all(found[name]["returned"] == 0 for name in commands(args.device, args.small, HERE)) else 1


if __name__ == "__main__":
    sys.exit(main())
