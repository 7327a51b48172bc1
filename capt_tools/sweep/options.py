"""What a sweep is asked for: flags, over a yaml file with the same names, over the variables of the scripts."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..plan.flags import add_flags, environ_of, settings_here
from ..plan.methods import method_in
from ..plan.run_all import DATASETS, METHODS, PROTOCOLS
from ..plan.settings import helps
from ..plan.steps import StopError
from .cells import cells_of
from .state import Sweep

__all__ = ["CLUSTERS", "add_flags_of_sweeps", "asked", "found", "parse"]

CLUSTERS = ("slurm", "local", "debug")
# METHODS, or protocols that no sweep has, say these.
NOT_HERE = ("base", "sub", "ctp", "nctx", "csc")
NUMBERS = ("per_job", "at_once", "gpus", "cpus")


def add_flags_of_sweeps(parser: argparse.ArgumentParser) -> None:
    """Add what says which sweep is meant, of which runs, and where they run."""
    parser.add_argument("file", nargs="?", help="yaml file with the names of these flags; flags go before it")
    parser.add_argument("--name", help="of the sweep; its files go to OUTPUT/sweeps/NAME (the protocol)")
    parser.add_argument("--protocol", default="base2new", help="base2new (default), xd or few_shot")
    parser.add_argument("--methods", help=f'capt:NAME is CAPT on the base learner NAME ("{METHODS}")')
    parser.add_argument("--datasets", help="names of configs/datasets/*.yaml (the eleven of the papers, less ImageNet)")
    parser.add_argument("--cluster", help="slurm, local (default), or debug: one by one, up to the first that fails")
    parser.add_argument("--dry-run", action="store_true", help="submit: say which jobs there would be, send none")
    parser.add_argument(
        "--at-once", type=int, help="so many at a time: local, where there is no GPU (1); slurm, of an array (256)"
    )
    parser.add_argument("--per-job", type=int, default=1, help="so many cells of one data set in one job (1)")
    local = parser.add_argument_group("local")
    local.add_argument("--devices", help='e.g. "0 1": one run at a time on each of these GPUs (all that are visible)')
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument("--time", default="4:00:00", help="limit of a job; what is not done by then goes on (4:00:00)")
    slurm.add_argument("--gpus", type=int, help="of a job (as many as --nproc, else 1)")
    slurm.add_argument("--cpus", type=int, help="of a job")
    slurm.add_argument("--mem", help="of a job, e.g. 16G")
    for name in ("partition", "account", "qos", "constraint"):
        slurm.add_argument(f"--{name}", help="as for sbatch")
    slurm.add_argument("--sbatch", nargs="+", default=[], metavar="KEY=VALUE", help="any other option of sbatch")
    add_flags(parser.add_argument_group("runs"), *(name for name in helps() if name not in NOT_HERE))


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The flags, and what the yaml file says where they say nothing.

    Raises:
        StopError: the file cannot be read, or has a name that no flag has.
    """
    args = parser.parse_args(argv)
    if args.file is None:
        return args
    stored = _read(Path(args.file))
    known = sorted(set(vars(args)) - {"action", "file", "dry_run"})
    if unknown := [name for name in stored if name not in known]:
        raise StopError(f"{args.file}: unknown name {unknown[0]}; there are: {' '.join(known)}")
    values = {name: _value(name, value) for name, value in stored.items() if value}
    return parser.parse_args(argv, argparse.Namespace(**values))


def _read(path: Path) -> dict[str, Any]:
    """Names with words, lists or mappings of words: as BaseLoader leaves them, a time of 4:00:00 is not 14400."""
    if path.suffix not in (".yaml", ".yml"):
        raise StopError(f"{path} is no .yaml or .yml file")
    try:
        stored = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise StopError(f"cannot read {path} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StopError(f"{path} is no yaml: {' '.join(str(error).split())}") from error
    if not isinstance(stored, dict):
        raise StopError(f"{path} holds no names with values, such as `methods: coop capt:CoOp`")
    return {str(name).replace("-", "_"): value for name, value in stored.items()}


def _value(name: str, value: Any) -> Any:
    """What the flag of this name would have made of it."""
    if name == "sbatch":
        return [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else [*value]
    if name in NUMBERS:
        try:
            return int(value)
        except (TypeError, ValueError):
            raise StopError(f"{name} must be a whole number, got {value}") from None
    return " ".join(value) if isinstance(value, list) else value


def found(args: argparse.Namespace) -> Sweep:
    """The sweep that the flags name.

    Raises:
        StopError: there is none.
    """
    return Sweep.find(settings_here(environ_of(args)).output, args.name or args.protocol)


def asked(args: argparse.Namespace) -> Sweep:
    """The sweep that the flags describe, with what is known of it from before.

    Raises:
        StopError: a name is unknown, or another sweep has this name.
    """
    environ = environ_of(args)
    settings = replace(settings_here(environ), is_dry=False)
    methods = (args.methods or environ.get("METHODS") or METHODS).split()
    datasets = (args.datasets or environ.get("DATASETS") or DATASETS).split()
    if args.protocol not in PROTOCOLS:
        raise StopError(f"unknown protocol {args.protocol}; there are: {' '.join(PROTOCOLS)}")
    if args.cluster not in (None, *CLUSTERS):
        raise StopError(f"unknown cluster {args.cluster}; there are: {' '.join(CLUSTERS)}")
    for name in methods:
        method_in(name.partition(":")[0])
    known = {path.stem for path in Path(settings.path("configs/datasets")).glob("*.yaml")}
    for name in datasets:
        if name not in known:
            raise StopError(f"unknown data set {name}; there are: {' '.join(sorted(known))}")
    methods.sort(key=lambda name: name.startswith("capt"))  # base learners first: CAPT waits for them
    cells = cells_of(methods, datasets, settings.seeds)
    folder = Path(settings.output, "sweeps", args.name or args.protocol)
    new = Sweep(folder, args.protocol, settings, args.cluster or "local", cells)
    new.nodes()  # stops at what cannot be planned
    if not (folder / "sweep.json").is_file():
        return new
    sweep = Sweep.find(settings.output, folder.name)
    sweep.extend(new)
    return sweep
