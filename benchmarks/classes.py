"""What the number of classes costs a run, phase by phase: seconds, seconds of CPU, and memory above that of the start.

Every number of classes is a run of its own in a process of its own: CAPT at its defaults on zero-shot CLIP, drawn
pictures in a folder (two a class to train on, one to test on), and the CLIP of three small blocks that the tests use.
The images are next to nothing, so what shows is what follows from the classes. ``--sizes vit_b16`` draws a CLIP and
pictures of that size instead. On a GPU time is the clock's, and the peak of its memory is counted, too.

    python benchmarks/classes.py --output classes.json
    python benchmarks/classes.py --classes 250 1000
    python benchmarks/classes.py --names sun397.txt imagenet.txt --sizes vit_b16 --shots 1
    python benchmarks/classes.py --classes 1000 --sizes vit_b16 --shots 16 --opts TRAINER.CAPT.PREC fp16
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drawn
import torch
from tabulate import tabulate

from trainers.capt.run.files import write_json
from trainers.capt.run.record import code_commit

# Method of the trainer: the phase that it is. What a phase calls of another counts there.
PHASES = {
    "build_data_loader": "data",
    "build_model": "model",
    "_use_cache": "cache",
    "_fit_shift": "shift",
    "_make_bank": "bank",
    "_meet_pairs": "pairs",
    "_fit_gain": "gain",
    "before_train": "other",
    "forward_backward": "steps",
    "test": "test",
}


class Clock:
    """Time and memory of phases; the time of one inside another is its own.

    Args:
        device: cuda: its memory is counted as well, and it has done what it was told when a phase ends.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.phases: dict[str, dict[str, float]] = {}
        self.start_mb = _memory("VmRSS")
        self._open: list[list[float]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens here."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        if self.device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._open.append([0.0, 0.0])
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            if self.device != "cpu":
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            inner = self._open.pop()
            if self._open:
                self._open[-1][0] += wall
                self._open[-1][1] += cpu
            self.add(name, wall - inner[0], cpu - inner[1])

    def add(self, name: str, wall: float, cpu: float) -> None:
        """Count a phase that has passed."""
        found = self.phases.setdefault(name, {"s": 0.0, "cpu_s": 0.0, "mb": 0.0, "gpu_mb": 0.0})
        found["s"] += wall
        found["cpu_s"] += cpu
        found["mb"] = max(found["mb"], _memory("VmHWM") - self.start_mb)
        if self.device != "cpu":
            found["gpu_mb"] = max(found["gpu_mb"], torch.cuda.max_memory_allocated() / 2**20)

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count every call of this method."""
        if not hasattr(owner, method):
            return  # another version of the code
        own: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(own)
        def timed(*args: Any, **kwargs: Any) -> Any:
            is_first = method == "forward_backward" and "first step" not in self.phases
            with self.phase("first step" if is_first else name):
                return own(*args, **kwargs)

        setattr(owner, method, timed)


def _memory(key: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def run(folder: Path, clock: Clock, num_shots: int, opts: list[str]) -> None:
    """One epoch of CAPT on the pictures in ``folder``, and its test."""
    from dassl.engine import TRAINER_REGISTRY
    from dassl.utils import set_random_seed

    own = {"DATASET.NUM_SHOTS": num_shots, **dict(zip(opts[::2], opts[1::2], strict=True))}
    cfg = drawn.configuration(folder, folder / "clip.pt", clock.device, own)
    set_random_seed(cfg.SEED)
    trainer_class = TRAINER_REGISTRY.get("CAPT")

    class Timed(trainer_class):  # type: ignore[misc, valid-type]  # Dassl's registry knows no types
        """Every phase of it is counted."""

        def __init__(self, config: Any):
            for method, name in PHASES.items():
                clock.wrap(self, method, name)
            super().__init__(config)

    Timed(cfg).train()


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one run, in the process that was started then."""
    import compat  # noqa: F401

    import datasets
    import trainers

    assert datasets  # both register what they hold
    assert trainers
    imported = time.time() - args.started, time.process_time()
    clock = Clock(args.device)
    clock.add("imports", *imported)
    drawn.take_sizes(args.sizes)
    run(args.one, clock, args.shots, args.opts)
    until = [clock.phases[name] for name in clock.phases if name not in ("steps", "test")]
    return {
        "phases": clock.phases,
        "until_first_step_s": sum(phase["s"] for phase in until),
        "until_first_step_cpu_s": sum(phase["cpu_s"] for phase in until),
        "until_first_step_mb": max(phase["mb"] for phase in until),
        "all_s": sum(phase["s"] for phase in clock.phases.values()),
        "all_cpu_s": sum(phase["cpu_s"] for phase in clock.phases.values()),
        "all_mb": max(phase["mb"] for phase in clock.phases.values()),
        "all_gpu_mb": max(phase["gpu_mb"] for phase in clock.phases.values()),
    }


def read_names(path: Path) -> list[str]:
    """Class names of a file, one a line; of JSON, the strings of a list or the keys of a table."""
    text = path.read_text(encoding="utf-8")
    names = list(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 250, 397, 1000])
    parser.add_argument("--names", type=Path, nargs="+", default=[], help="files of class names, instead of --classes")
    parser.add_argument("--sizes", choices=list(drawn.SIZES), default="tiny", help="of CLIP and pictures")
    parser.add_argument("--shots", type=int, default=2, help="pictures a class to train on")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; the one with least time counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="of the configuration, in pairs")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the folder of a run of its own, and its start
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measured(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Figures of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn.draw(folder / "images", names, args.shots)
        drawn.store_clip(folder / "clip.pt")
        command = [sys.executable, __file__, "--one", temporary, "--started", str(time.time())]
        command += ["--sizes", args.sizes, "--shots", str(args.shots), "--device", args.device]
        command += ["--opts", *args.opts] if args.opts else []
        done = subprocess.run(command, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", **os.environ})
        if done.returncode:
            raise RuntimeError(f"the run with {len(names)} classes failed:\n{done.stderr[-2000:]}")
        said = [line for line in done.stdout.splitlines() if line.startswith(("Memory:", "Feature cache"))]
        print("\n".join(said), flush=True)
        return {"classes": len(names), "said": said, **json.loads((folder / "figures.json").read_text())}


def table(figures: list[dict[str, Any]], device: str) -> str:
    """Seconds and MB of every phase, a column for each number of classes: of CPU, or by the clock and of a GPU."""
    key = "cpu_s" if device == "cpu" else "s"
    nothing = {key: 0.0, "mb": 0.0, "gpu_mb": 0.0}

    def cell(phase: dict[str, float]) -> str:
        on_gpu = "" if device == "cpu" else f", GPU {phase['gpu_mb']:.0f} MB"
        return f"{phase[key]:.2f} s, {phase['mb']:.0f} MB{on_gpu}"

    names = list(dict.fromkeys(name for f in figures for name in f["phases"]))
    rows = [[name, *(cell(f["phases"].get(name, nothing)) for f in figures)] for name in names]
    rows.append(["until the first step", *(f"{f[f'until_first_step_{key}']:.2f} s" for f in figures)])
    head = "phase, CPU" if device == "cpu" else "phase"
    return tabulate(rows, [head, *(f"{f['classes']:,} classes" for f in figures)], tablefmt="github")


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    args = arguments(argv)
    if args.one:
        write_json(args.one / "figures.json", one(args))
        return 0
    drawn.take_sizes(args.sizes)
    figures = []
    lists = [read_names(path) for path in args.names] or [
        [f"thing {number:04d}" for number in range(num_classes)] for num_classes in args.classes
    ]
    for names in lists:
        runs = [measured(args, names) for _ in range(args.repeats)]
        key = f"until_first_step_{'cpu_s' if args.device == 'cpu' else 's'}"
        figures.append(min(runs, key=lambda f: f[key]))
        best = figures[-1]
        print(
            f"{len(names):,} classes until the first step: {best['until_first_step_s']:.1f} s "
            f"({best['until_first_step_cpu_s']:.1f} s of CPU), {best['until_first_step_mb']:.0f} MB above the start; "
            f"in all: {best['all_s']:.1f} s ({best['all_cpu_s']:.1f} s of CPU), {best['all_mb']:.0f} MB"
            + ("" if args.device == "cpu" else f", {best['all_gpu_mb']:.0f} MB of the GPU"),
            flush=True,
        )
        if args.output:  # what there is so far
            asked = {name: str(value) for name, value in vars(args).items()}
            about = {"commit": code_commit(), "machine": drawn.machine(args.device), "arguments": asked}
            write_json(args.output, {**about, "figures": figures})
    print(f"\n{table(figures, args.device)}\n\ncommit {code_commit()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
