"""A whole small sweep, the old way and the new: a process a run that encodes everything, against lanes and files.

    python benchmarks/sweep.py --data ../shared/data --backbone ../shared/data/clip/small_vit48.pt --size "(48, 48)"

The old way is this code with a process for every run and no stored features; the new one starts each repetition with
an empty folder of features. Ways take turns. What both leave is compared to the last bit. CPU seconds count user and
system time of all processes, which is what others on the machine disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.plan.lane import Lane  # noqa: E402
from capt_tools.plan.run_all import stages  # noqa: E402
from capt_tools.plan.runner import Runner  # noqa: E402
from capt_tools.plan.settings import Settings  # noqa: E402

METHODS = "zsclip linearprobe clipadapter tipadapter tipadapterf capt:ZeroshotCLIP"
OFF = ("TRAINER.CAPT.CACHE.DISK_GB", "0")


def settings_of(args: argparse.Namespace, output: Path) -> Settings:
    """Settings of the runs, whose variables are not read from the environment."""
    settings = Settings(python=sys.executable, house=str(Path(__file__).resolve().parents[1]), data=args.data)
    opts = ("DATALOADER.NUM_WORKERS", str(args.workers))
    return replace(settings, backbone=args.backbone, size=args.size, output=str(output), opts=opts)


def run(args: argparse.Namespace, way: str, output: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one sweep."""
    settings = settings_of(args, output)
    own = OFF if way == "old" else ("TRAINER.CAPT.CACHE.DIR", str(output / "features"))
    settings = replace(settings, opts=(*settings.opts, *own))
    environ = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    start, cpu = time.monotonic(), children()
    with Lane() as lane:
        runner = Runner(settings, environ, lambda line: None, lane=None if way == "old" else lane)
        for seed, name in product(args.seeds.split(), args.methods.split()):
            for stage in stages(settings, "base2new", name, args.dataset, seed):
                runner.run(stage.plan)
    return time.monotonic() - start, children() - cpu


def children() -> float:
    """User and system seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def same_predictions(old: Path, new: Path) -> int:
    """How many runs gave the same predictions to the last bit.

    Raises:
        ValueError: one did not.
    """
    paths = sorted(old.rglob("predictions.npz"))
    for path in paths:
        with np.load(path) as mine, np.load(new / path.relative_to(old)) as theirs:
            if mine.files != theirs.files or not all(np.array_equal(mine[key], theirs[key]) for key in mine.files):
                raise ValueError(f"{path.relative_to(old)} differs between the two ways")
    return len(paths)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True, help="folder that holds the data set folders")
    made.add_argument("--backbone", default="", help="CLIP model name, or path of a checkpoint")
    made.add_argument("--size", default="", help='input size, e.g. "(48, 48)"')
    made.add_argument("--dataset", default="caltech101")
    made.add_argument("--methods", default=METHODS)
    made.add_argument("--seeds", default="1 2 3")
    made.add_argument("--workers", type=int, default=0)
    made.add_argument("--repeats", type=int, default=1)
    made.add_argument("--json", default="", help="file for the figures")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, compare and print; 0."""
    args = parser().parse_args(argv)
    seconds: dict[str, list[tuple[float, float]]] = {"old": [], "new": []}
    folder = Path(tempfile.mkdtemp(prefix="capt_sweep_"))
    try:
        for number, way in product(range(args.repeats), ("old", "new")):
            seconds[way].append(run(args, way, folder / f"{way}{number}"))
        num_same = same_predictions(folder / "old0", folder / "new0")
    finally:
        shutil.rmtree(folder)
    median = {way: [statistics.median(part) for part in zip(*found, strict=True)] for way, found in seconds.items()}
    ratio = [new / old for new, old in zip(median["new"], median["old"], strict=True)]
    rows = [[way, *values] for way, values in median.items()]
    table = tabulate([*rows, ["new / old", *ratio]], ["way", "wall s", "CPU s"], "github", floatfmt=".3g")
    print(f"{table}\n{num_same} runs, equal to the last bit; {os.cpu_count()} CPU cores")
    if args.json:
        about = {"seconds": seconds, "ratio": ratio, "runs": num_same, "arguments": vars(args), "cores": os.cpu_count()}
        Path(args.json).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
