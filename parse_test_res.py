"""Mean and spread of the test results in the log files of several seeds: CoOp's call, CoOp's output.

    output/my_experiment/
        seed1/log.txt
        seed2/log.txt
        seed3/log.txt

    python parse_test_res.py output/my_experiment                 results of training runs
    python parse_test_res.py output/my_experiment --test-log      results of --eval-only runs
    python parse_test_res.py output/my_experiments --multi-exp    a folder of such folders: each, then their mean
    python parse_test_res.py output/my_experiment --ci95          95 % confidence interval instead of the deviation
    python parse_test_res.py output/my_experiment --keyword macro_f1

Logs of every repository of the family can be read: both words for the end of training ("Finish training",
"Finished training"), one or two decimals. Notes (seeds found, runs without a result, later logs of the same folder)
go to stderr, so stdout stays CoOp's. Logs of base and new classes in one folder are refused.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRAINING_ENDS = ("Finish training", "Finished training")  # the second is Dassl's wording before v0.6.1
TEST_STARTS = ("=> result",)


class LogError(ValueError):
    """A folder whose logs cannot be summed up; the message says why."""


@dataclass(frozen=True)
class Log:
    """What one log file says. `value` is in percent, None without a result."""

    path: Path
    value: float | None
    subsample: str
    seed: str


def read_log(path: Path, keyword: str = "accuracy", signals: Sequence[str] = TRAINING_ENDS) -> Log:
    """Read the last ``* keyword: x%`` that follows one of the lines `signals`.

    Args:
        path: a log.txt, of any repository of the family.
        keyword: the figure to read, e.g. ``accuracy`` or ``macro_f1``.
        signals: nothing before one of these lines counts.
    """
    figure = re.compile(rf"\* {re.escape(keyword)}: ([\d.eE+-]+)%")
    value, subsample, seed, counts = None, "", "", False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        line = line.rstrip()
        if not subsample and (match := re.match(r"\s+SUBSAMPLE_CLASSES: (\w+)$", line)):
            subsample = match.group(1)
        if not seed and (match := re.match(r"SEED: (-?\d+)$", line)):
            seed = match.group(1)
        counts = counts or line.strip() in signals
        if counts and (match := figure.search(line)):
            value = float(match.group(1))
    return Log(path, value, subsample, seed)


def read_run(folder: Path, keyword: str, signals: Sequence[str]) -> Log:
    """The log that holds the result of a run: log.txt, or the newest ``log.txt-<time>`` where log.txt has none.

    Raises:
        LogError: there is no log in `folder`.
    """
    first, later = folder / "log.txt", sorted(folder.glob("log.txt-*"))
    paths = [path for path in (first, *reversed(later)) if path.is_file()]
    if not paths:
        raise LogError(f"no log.txt in {folder}; a folder of such folders is read with --multi-exp")
    logs = [read_log(path, keyword, signals) for path in paths]
    log = next((log for log in logs if log.value is not None), logs[0])
    others = [f"{other.path.name} ({_percent(other.value)})" for other in logs if other is not log]
    if others:
        _note(f"{folder} holds {len(logs)} logs; {log.path.name} counts, not {', '.join(others)}")
    return log


def parse_folder(folder: Path, keyword: str, signals: Sequence[str], ci95: bool = False) -> list[Log]:
    """Print CoOp's summary of the runs in `folder` and return their logs.

    Raises:
        LogError: no run has a result, or base and new logs are mixed.
    """
    print(f"Parsing files in {folder}")
    if not folder.is_dir():
        raise LogError(f"{folder} is not a folder")
    runs = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    logs = [read_run(run, keyword, signals) for run in runs]
    for log in logs:
        if log.value is None:
            _note(f"no result in {log.path} (unfinished, or the wrong kind of log)")
    logs = [log for log in logs if log.value is not None]
    if not logs:
        other = "leave out --test-log" if signals is TEST_STARTS else "--test-log reads logs of --eval-only runs"
        raise LogError(f"Nothing found in {folder}: no '* {keyword}: ...%' after '{signals[0]}' ({other})")
    refuse_mixture(logs, folder)

    for log in logs:
        print(f"file: {log.path}. {keyword}: {log.value:.2f}%. ")
    values = [log.value for log in logs if log.value is not None]
    print("===")
    print(f"Summary of directory: {folder}")
    print(f"* {keyword}: {statistics.fmean(values):.2f}% +- {spread(values, ci95):.2f}%")
    print("===")
    _note(f"seeds found in {folder}: {' '.join(log.seed or log.path.parent.name for log in logs)}")
    return logs


def refuse_mixture(logs: Sequence[Log], folder: Path) -> None:
    """Raise LogError where `logs` are of different class subsets, by the configuration that each log prints."""
    kinds: dict[str, Path] = {}
    for log in logs:
        kinds.setdefault(log.subsample or "unknown", log.path)
    if len(kinds) > 1:
        found = ", ".join(f"{kind} ({path})" for kind, path in kinds.items())
        raise LogError(f"{folder} mixes logs of different DATASET.SUBSAMPLE_CLASSES: {found}; keep them apart")


def spread(values: Sequence[float], ci95: bool = False) -> float:
    """Population standard deviation, or half the width of the 95 % interval of the mean (1.96 sigma / sqrt n)."""
    sigma = statistics.pstdev(values)
    return 1.96 * sigma / math.sqrt(len(values)) if ci95 else sigma


def _percent(value: float | None) -> str:
    return "no result" if value is None else f"{value:.2f}%"


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="folder whose sub-folders hold the logs")
    parser.add_argument("--ci95", action="store_true", help="95%% confidence interval instead of the deviation")
    parser.add_argument("--test-log", action="store_true", help="read logs of --eval-only runs")
    parser.add_argument("--multi-exp", action="store_true", help="read every folder in DIRECTORY, then average")
    parser.add_argument("--keyword", default="accuracy", help="figure to read (default: accuracy)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the summary; return 0, or 2 with one line on stderr where there is none."""
    args = build_parser().parse_args(argv)
    signals = TEST_STARTS if args.test_log else TRAINING_ENDS
    try:
        if not args.multi_exp:
            parse_folder(args.directory, args.keyword, signals, args.ci95)
            return 0
        if not args.directory.is_dir():
            raise LogError(f"{args.directory} is not a folder")
        folders = sorted(path for path in args.directory.iterdir() if path.is_dir() and not path.name.startswith("."))
        experiments = [parse_folder(folder, args.keyword, signals, args.ci95) for folder in folders]
        if not experiments:
            raise LogError(f"Nothing found in {args.directory}: it has no sub-folder")
        refuse_mixture([log for logs in experiments for log in logs], args.directory)
    except LogError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("Average performance")
    mean = statistics.fmean(
        statistics.fmean(log.value for log in logs if log.value is not None) for logs in experiments
    )
    print(f"* {args.keyword}: {mean:.2f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
