"""What CAPT adds to the base learner it stands on, seed by seed: mean paired difference and its standard error.

Every record of a CAPT run holds the figures of its own base on the same images, so runs of CAPT are all that is read.

    python benchmarks/gain_over_base.py OUTPUT...
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

HEADER = ["data", "shots", "on", "seeds", "base", "per class", "new", "HM", "resolved", "introduced", "net", "net, new"]
Key = tuple[str, int, str]  # data set, shots, base learner
Record = dict[str, Any]  # a run's results.json
Halves = dict[str, dict[int, Record]]  # "base" or "new" to seed to record


def records(folders: list[Path]) -> dict[Key, Halves]:
    """The runs of CAPT below these folders."""
    found: dict[Key, Halves] = defaultdict(lambda: {"base": {}, "new": {}})
    for path in sorted(path for folder in folders for path in folder.rglob("results.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["trainer"] == "CAPT" and record["subsample"] in ("base", "new"):
            key = record["dataset"], record["shots"], record["base"]
            found[key][record["subsample"]][record["seed"]] = record
    return found


def harmonic(a: float, b: float) -> float:
    """Harmonic mean."""
    return 2 * a * b / (a + b)


def paired(values: list[float]) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):+.2f} ± {error:.2f}"


def row(key: Key, halves: Halves) -> list[object]:
    """One line of the table, over the seeds that have both halves."""
    seeds = sorted(set(halves["base"]) & set(halves["new"]))
    base, new = ([halves[half][seed] for seed in seeds] for half in ("base", "new"))
    before = [
        harmonic(b["confusion"]["base_accuracy"], n["confusion"]["base_accuracy"])
        for b, n in zip(base, new, strict=True)
    ]
    after = [harmonic(b["accuracy"], n["accuracy"]) for b, n in zip(base, new, strict=True)]
    gains = [
        [r["accuracy"] - r["confusion"]["base_accuracy"] for r in base],
        [r["mean_per_class_accuracy"] - r["confusion"]["base_mean_per_class_accuracy"] for r in base],
        [r["accuracy"] - r["confusion"]["base_accuracy"] for r in new],
        list(np.subtract(after, before)),
    ]
    shares = [mean_share(base, name) for name in ("resolved", "introduced", "net")]
    return [*key, len(seeds), *map(paired, gains), *shares, mean_share(new, "net")]


def mean_share(runs: list[Record], name: str) -> float:
    """Percent, over the runs whose base learner has confusable pairs at all."""
    shares = [run["confusion"][name] for run in runs if run["confusion"][name] is not None]
    return float(np.mean(shares)) if shares else float("nan")


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="+", help="folders with base-to-new runs below them")
    found = records(parser.parse_args(argv).output)
    rows = [row(key, halves) for key, halves in sorted(found.items()) if set(halves["base"]) & set(halves["new"])]
    if not rows:
        print("error: no run of CAPT that was tested on base and new classes", file=sys.stderr)
        return 2
    print(tabulate(rows, HEADER, floatfmt=".2f", tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
