"""What a second process is worth: a training step by one process and by two, and sharing the text tower among them.

A small CLIP with random weights, C classes, noise for images, CoOp or MaPLe. Every process computes on one thread, and
gloo carries what they tell each other. *apart* is two processes that share the batch alone, each with the texts of all
classes; *shared* is what runs do: each encodes C/2 of them. The ways are timed in turns, so that what else runs on the
machine meets all of them. Two times are taken: by the clock, which wants two free cores, and the CPU time of the
process that needs more of it, which does not, but leaves out how long one waits for the other.

    python benchmarks/distributed.py --classes 20 100 200 500 1000 --output distributed.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "trainers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import tiny
import torch
from tabulate import tabulate
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's documents name it so
from torch.multiprocessing.spawn import start_processes

from trainers import prompted_classifier
from trainers.capt.run.distributed import gather, joined, rank, wait_for_all
from trainers.capt.run.files import write_json
from trainers.capt.run.record import code_commit
from trainers.capt.run.shares import own_rows

TIMES = ("clock", "CPU")
WAYS = {"one": 1, "apart": 2, "shared": 2}  # how a step is taken, and by how many processes


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 100, 200, 500, 1000])
    parser.add_argument("--methods", nargs="+", default=["CoOp", "MaPLe"])
    parser.add_argument("--batch", type=int, default=8, help="images in a step")
    parser.add_argument("--steps", type=int, default=5, help="in a turn, behind one that does not count")
    parser.add_argument("--turns", type=int, default=5, help="of all ways; the median counts")
    parser.add_argument("--output", help="JSON file for the figures")
    return parser.parse_args(argv)


def step_seconds(method: str, clip: Path, num_classes: int, batch: int, steps: int) -> tuple[float, float]:
    """Mean seconds of a step, by the clock and of the CPU; of several processes the higher ones."""
    names = [f"class {number}" for number in range(num_classes)]
    trainer = tiny.make_trainer(method, clip, class_names=names)
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
    trainer.set_model_mode("train")
    source = torch.Generator().manual_seed(0)
    images, labels = torch.randn(batch, 3, tiny.SIDE, tiny.SIDE, generator=source), torch.arange(batch) % num_classes
    mine = own_rows(batch)
    data = {"img": images[mine], "label": labels[mine]}
    trainer.forward_backward(data)
    wait_for_all()
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        trainer.forward_backward(data)
    spent = (time.perf_counter() - clock) / steps, (time.process_time() - cpu) / steps
    by_process = gather(spent)
    return max(clock for clock, _ in by_process), max(cpu for _, cpu in by_process)


def in_process(number: int, way: str, port: int, file: str, case: tuple[str, Path, int, int, int]) -> None:
    """Take the steps of one case as process ``number`` of a way, and write the first one's seconds into ``file``."""
    os.environ.update(RANK=str(number), WORLD_SIZE=str(WAYS[way]), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    torch.set_num_threads(1)
    if way == "apart":
        encoder = prompted_classifier.TextEncoder
        encoder.of_classes = encoder.forward  # type: ignore[method-assign]
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    with joined():
        seconds = step_seconds(*case)
        if rank() == 0:
            Path(file).write_text(json.dumps(seconds))


def turn(way: str, case: tuple[str, Path, int, int, int]) -> tuple[float, float]:
    """What :func:`step_seconds` gives of one case, in new processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "seconds"))
        start_processes(in_process, (way, store.port, file, case), nprocs=WAYS[way], start_method="fork")
        clock, cpu = json.loads(Path(file).read_text())
        return clock, cpu


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of a step in every way, for every method and number of classes."""
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "clip.pt")
        torch.save(tiny.clip_state(), clip)
        for method in args.methods:
            for num_classes in args.classes:
                case = (method, clip, num_classes, args.batch, args.steps)
                turns = [{way: turn(way, case) for way in WAYS} for _ in range(args.turns)]
                found = {
                    kind: {way: statistics.median(taken[way][place] for taken in turns) for way in WAYS}
                    for place, kind in enumerate(TIMES)
                }
                figures.append({"method": method, "classes": num_classes, **found})
                print(table(figures[-1:]), flush=True)
    return figures


def table(figures: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of a step, and one process's over those of two."""
    rows = []
    for found, kind in ((found, kind) for found in figures for kind in TIMES):
        one, apart, shared = (1000 * found[kind][way] for way in WAYS)
        rows.append([found["method"], found["classes"], kind, one, apart, shared, one / apart, one / shared])
    heads = ["method", "classes", "time", "one, ms", "apart, ms", "shared, ms", "one / apart", "one / shared"]
    formats = ("", "", "", ".0f", ".0f", ".0f", ".2f", ".2f")
    return tabulate(rows, headers=heads, tablefmt="github", floatfmt=formats)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print the table, and write the JSON file that was asked for."""
    args = arguments(argv)
    figures = measure(args)
    print(table(figures))
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        write_json(args.output, {"commit": code_commit(), "settings": settings, "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
