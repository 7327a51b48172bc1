"""What one training step costs: the prompt learners beside their originals, and CAPT beside MaPLe.

    python benchmarks/steps.py --output steps.json
    CAPT_PEERS=../peers python benchmarks/steps.py --methods CoOp MaPLe --batch 4
    python benchmarks/steps.py --sizes tiny --turns 3

Each learner is a process of its own on the same random weights, images and labels, in fp32; CAPT_PEERS names a folder
with copies of the original repositories (``tests/peers/run_original.py``), which run with their own code on our torch.
Processes make their steps in turns, so that what else runs on the machine meets all of them, and medians count. On a
CPU that is the time of the CPU, which other jobs disturb least; wall time is in the JSON, too. Logits and gradients of
a first step are compared with the originals' before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import drawn
import numpy as np
from tabulate import tabulate

from trainers.capt.run.files import write_json
from trainers.capt.run.record import code_commit

HERE = Path(__file__).resolve().parent
Figures = dict[str, Any]
# CoCoOp's texts are encoded for each image: with 32 images the original keeps 56 GB of activations.
MOST_IMAGES = {"CoCoOp": 4}
CAPT_WAYS = ("cached step", "step", "test", "base test")


def cases(num_blocks: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Method: its trainer, and keys of its node where they are not the defaults."""
    depth = min(9, num_blocks)
    both = {"PROMPT_DEPTH_VISION": depth, "PROMPT_DEPTH_TEXT": depth}
    return {
        "CoOp": ("CoOp", {"N_CTX": 16}),
        "CoOp, 4 words": ("CoOp", {"CTX_INIT": "a photo of a"}),
        "CoCoOp": ("CoCoOp", {"N_CTX": 4, "CTX_INIT": "a photo of a"}),
        "MaPLe": ("MaPLe", {"PROMPT_DEPTH": depth}),
        "IVLP": ("IVLP", both),
        "PromptSRC": ("PromptSRC", both),
    }


class Worker:
    """A process of ``step_worker.py``.

    Args:
        about: what it builds.

    Raises:
        RuntimeError: it ended; the message holds the last lines of what it printed.
    """

    def __init__(self, about: Figures):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        self._command = [sys.executable, str(HERE / "step_worker.py"), json.dumps(about)]
        environ = {**os.environ, "OMP_NUM_THREADS": str(about["threads"])}
        self._process = subprocess.Popen(
            self._command, text=True, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        self.about = about

    def wait(self) -> None:
        """Until it is built; what it then says is added to ``about``."""
        self.about = {**self.about, **self._answer()}

    def ask(self, **asked: object) -> Figures:
        """Its answer to a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"{self._command} ended:\n{self._log.read()[-2000:]}")
        found: Figures = json.loads(line)
        return found

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()


def differences(ours: Path, theirs: Path) -> Figures:
    """Largest differences of logits and of first gradients, these in parts of the largest entry of their tensor."""
    with np.load(ours) as mine, np.load(theirs) as other:
        if set(mine) != set(other):
            raise ValueError(f"trained parameters differ: {sorted(set(mine) ^ set(other))}")
        found = {name: float(np.abs(mine[name] - other[name]).max()) for name in mine}
        largest = {name: float(np.abs(other[name]).max()) for name in other}
    gradients = [found[name] / (largest[name] or 1.0) for name in found if name != "logits"]
    return {"logits": found["logits"], "largest_logit": largest["logits"], "gradients": max(gradients)}


def in_turns(asked: list[tuple[Worker, str]], size: int, turns: int) -> list[Figures]:
    """Medians of each worker's way, and the figures of all turns; the first call counts operations instead of time."""
    found: list[list[Figures]] = [[] for _ in asked]
    counts = [worker.ask(way="count", of=way, batch=size) for worker, way in asked]
    for _ in range(turns):
        for (worker, way), own in zip(asked, found, strict=True):
            own.append(worker.ask(way=way, batch=size))
    medians = [{key: statistics.median(one[key] for one in own) for key in own[0]} for own in found]
    return [middle | count | {"all": own} for middle, count, own in zip(medians, counts, found, strict=True)]


def measured(args: argparse.Namespace, method: str, clip: Path) -> list[Figures]:
    """Rows of one method at each batch size; MaPLe's hold CAPT's as well."""
    name, keys = cases(drawn.SIZES[args.sizes][3])[method]
    common = {"clip": str(clip), "classes": args.classes, "sizes": args.sizes, "device": args.device}
    common |= {"threads": args.threads, "name": name, "keys": keys, "peers": args.peers}
    sides = ["ours", *(["original"] if args.peers else []), *(["capt"] if method == "MaPLe" and args.capt else [])]
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = {side: stack.enter_context(Worker({**common, "side": side})) for side in sides}
        for worker in workers.values():
            worker.wait()
        equal = None
        if args.peers:
            paths = {side: Path(folder) / f"{side}.npz" for side in ("ours", "original")}
            for side, path in paths.items():
                workers[side].ask(way="compare", batch=min(args.batch), path=str(path))
            equal = differences(paths["ours"], paths["original"])
        for size in args.batch:
            if size > MOST_IMAGES.get(name, size):
                continue
            asked = [(side, way) for side in sides for way in (CAPT_WAYS if side == "capt" else ("step",))]
            found = in_turns([(workers[side], way) for side, way in asked], size, args.turns)
            for (side, way), figures in zip(asked, found, strict=True):
                about = {"method": "CAPT" if side == "capt" else method, "side": side, "way": way, "batch": size}
                rate, same = workers[side].about["rate"], equal if side == "ours" else None
                rows.append({**about, **figures, "rate": rate, "equal": same})
    return rows


def tables(rows: list[Figures], key: str) -> str:
    """The learners beside their originals, and CAPT beside MaPLe."""

    def one(**wanted: object) -> Figures | None:
        return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)

    lines = []
    for row in [row for row in rows if row["side"] == "ours"]:
        other = one(method=row["method"], side="original", batch=row["batch"])
        theirs = [None] * 3 if other is None else [other[key], row[key] / other[key], other["mb"]]
        seconds, ratio, memory = theirs
        lines.append(
            [row["method"], row["batch"], seconds, row[key], ratio, memory, row["mb"], f"{100 * row['share']:.0f} %"]
        )
    head = ["method", "batch", "original, s", "here, s", "ratio", "original, MB", "here, MB", "of the matmul rate"]
    parts = [tabulate(lines, head, "github", floatfmt=("", "", ".2f", ".2f", ".2f", ".0f", ".0f"))]
    lines = []
    for row in [row for row in rows if row["side"] == "capt"]:
        ours = one(method="MaPLe", side="ours", batch=row["batch"])
        other = one(method="MaPLe", side="original", batch=row["batch"])
        base = one(side="capt", way="base test", batch=row["batch"])
        ratios = [None if there is None else row[key] / there[key] for there in (ours, other, base)]
        if "test" in row["way"]:
            ratios[:2] = [None, None]
        else:
            ratios[2] = None
        lines.append([row["way"], row["batch"], row[key], *ratios, row["mb_above"], f"{100 * row['share']:.0f} %"])
    head = ["CAPT", "batch", "s", "of MaPLe's step", "of the original's", "of the base's test"]
    head += ["MB above the start", "of the matmul rate"]
    parts += [tabulate(lines, head, "github", floatfmt=("", "", ".3f", ".4f", ".4f", ".3f", ".0f"))] if lines else []
    return "\n\n".join(parts)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = list(cases(1))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="METHOD")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3, help="steps of each process; the median counts")
    parser.add_argument("--sizes", choices=list(drawn.SIZES), default="vit_b16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of a process on a CPU")
    parser.add_argument(
        "--peers", default=os.environ.get("CAPT_PEERS", ""), help="copies of the originals (CAPT_PEERS)"
    )
    parser.add_argument("--no-capt", dest="capt", action="store_false", help="leave CAPT out")
    parser.add_argument("--output", help="JSON file for the figures")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables; 0."""
    args = arguments(argv)
    drawn.take_sizes(args.sizes)
    rows: list[Figures] = []
    key = "cpu_s" if args.device == "cpu" else "wall_s"
    machine = drawn.machine(args.device)
    with tempfile.TemporaryDirectory() as folder:
        clip = drawn.store_clip(Path(folder) / "clip.pt")
        for method in args.methods:
            rows += measured(args, method, clip)
            rate = max(row["rate"] for row in rows)  # the machine's: the best that any process saw
            for row in rows:
                row["share"] = row["flops"] / row[key] / rate
            if args.output:  # what there is so far
                about = {"commit": code_commit(), "machine": machine, "arguments": vars(args), "rows": rows}
                write_json(args.output, about)
            print(f"{method} done", file=sys.stderr)
    print(tables(rows, key))
    for row in rows:
        if row["equal"]:
            print(f"{row['method']}, batch {row['batch']}, differences from the original: {row['equal']}")
    print(f"\n{args.classes} classes, {args.sizes}, fp32; {machine}; commit {code_commit()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
