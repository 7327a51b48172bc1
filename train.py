"""Train and test any method of this repository: CoOp's entry point, with CoOp's flags and merge order.

    python train.py --root DATA --seed 1 --trainer CAPT \\
        --dataset-config-file configs/datasets/caltech101.yaml \\
        --config-file configs/trainers/CAPT/vit_b16_ep20.yaml \\
        --output-dir output/try DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base

Bad input ends with one line on stderr and exit code 2; ``CAPT_DEBUG=1`` shows the traceback as well. A mistake in
the code itself always shows its traceback and ends with exit code 1. ``--nproc 4``, or torchrun, lets four processes
do one run together (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from capt_tools.train_flags import build_parser as build_parser  # whoever imports this module finds it here

if __name__ == "__main__":
    build_parser().parse_args()  # help, and what is mistyped, is answered before anything large is imported

import compat  # noqa: F401  makes `import dassl` work

import torch
import yaml
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger
from yacs.config import CfgNode

import datasets  # noqa: F401  registers every data set
import trainers  # registers every trainer
from capt_tools.house import find
from capt_tools.launch import launch
from capt_tools.many_runs import serve
from capt_tools.plan.lane import VARIABLE
from trainers.capt.run.distributed import (
    PeerLostError,
    from_first,
    has_failed,
    is_first,
    is_told_elsewhere,
    joined,
    quiet_unless_first,
    take_device,
    world,
)
from trainers.capt.run.lock import hold_folder
from trainers.capt.run.signals import Interrupted, Interruption
from trainers.capt.run.states import rng_state, set_rng_state
from trainers.capt.run.yaml_file import merge_yaml

ROOT = Path(__file__).resolve().parent
# Where an exception that means "bad input" is raised: here, or in a library that reads the user's files.
READERS = ("dassl", "yacs", "yaml", "PIL", "clip", "safetensors")

_loggers: list[object] = []


class InputError(ValueError):
    """What the user asked for cannot be done; the message says why and what to do."""


def reset_cfg(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Copy the flags that were given into `cfg`."""
    if args.root:
        cfg.DATASET.ROOT = args.root
    if args.output_dir:
        cfg.OUTPUT_DIR = args.output_dir
    if args.resume:
        cfg.RESUME = args.resume
    if args.seed is not None:
        cfg.SEED = args.seed
    if args.source_domains is not None:
        cfg.DATASET.SOURCE_DOMAINS = args.source_domains
    if args.target_domains is not None:
        cfg.DATASET.TARGET_DOMAINS = args.target_domains
    if args.transforms is not None:
        cfg.INPUT.TRANSFORMS = args.transforms
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer
    if args.backbone:
        cfg.MODEL.BACKBONE.NAME = find(args.backbone)
    if args.head:
        cfg.MODEL.HEAD.NAME = args.head


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Merge everything in CoOp's order, later wins, and freeze it.

    Raises:
        InputError: a file is no YAML of settings, a key does not exist, or a value has the wrong type.
    """
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)

    # 1. From the dataset config file
    if args.dataset_config_file:
        _merge_file(cfg, args.dataset_config_file)
    # 2. From the method config file
    if args.config_file:
        _merge_file(cfg, args.config_file)
    # 3. From the flags
    reset_cfg(cfg, args)
    # 4. From the KEY VALUE pairs at the end of the command line
    _merge_opts(cfg, args.opts)

    cfg.TRAINER.CAPT.SEM.PROMPTS = find(cfg.TRAINER.CAPT.SEM.PROMPTS)
    cfg.freeze()
    return cfg


def _merge_file(cfg: CfgNode, path: str) -> None:
    try:
        merge_yaml(cfg, find(path))
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        message = _with_near_key(cfg, _one_line(error))
        raise InputError(message if message.startswith(find(path)) else f"{path}: {message}") from error


def _merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    flags = [word for word in opts if word.startswith("--")]
    if flags:  # argparse gives everything behind the first KEY to opts, and CoOp then ignored the flag's effect
        raise InputError(f"{flags[0]} stands behind a KEY VALUE pair; put all flags before the first KEY")
    try:
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError) as error:
        raise InputError(_with_near_key(cfg, _one_line(error))) from error


def _with_near_key(cfg: CfgNode, message: str) -> str:
    """Add the most similar existing key to yacs' message about one that does not exist."""
    head, found, asked = message.partition("xistent key: ")
    if not found:
        head, found, asked = message.partition("xistent config key: ")
    near = difflib.get_close_matches(asked, _flat_keys(cfg), n=1, cutoff=0.5) if found else []
    return f"{message} (do you mean {near[0]}?)" if near else message


def _flat_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys += [prefix + key]
        if isinstance(value, CfgNode):
            keys += _flat_keys(value, f"{prefix}{key}.")
    return keys


def print_args(args: argparse.Namespace, cfg: CfgNode) -> None:
    """The banner that log readers of this family know."""
    print("***************")
    print("** Arguments **")
    print("***************")
    for key, value in sorted(vars(args).items()):
        print(f"{key}: {value}")
    print("************")
    print("** Config **")
    print("************")
    print(cfg)


def run(args: argparse.Namespace) -> None:
    """One run from the parsed command line: merge, seed, log, build, then train or test.

    Raises:
        Interrupted: by a signal; the exit code of the process is then 128 + its number.
    """
    cfg = setup_cfg(args)
    with hold_folder(cfg.OUTPUT_DIR), Interruption():
        try:
            _run(args, cfg)
        except Interrupted as stop:
            if not stop.is_told and not has_failed():
                print(f"{stop.name}: stopped before there was anything to save; give the same command again")
            raise


def _run(args: argparse.Namespace, cfg: CfgNode) -> None:
    take_device(cfg.USE_CUDA)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    elif world() > 1:
        set_rng_state(from_first(rng_state()))
    setup_logger(cfg.OUTPUT_DIR if is_first() else None)

    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True

    print_args(args, cfg)
    print("Collecting env info ...")
    print(f"** System info **\n{_environment(collect_env_info)}\n")

    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    elif not args.no_train:
        trainer.train()


@functools.cache
def _environment(collect: Callable[[], str]) -> str:
    """What does not change while a process lives, and takes half a second to find out."""
    return collect()


@contextlib.contextmanager
def _console_kept() -> Iterator[None]:
    """Give ``sys.stdout`` back at the end; ``setup_logger`` replaces it by a tee into log.txt."""
    console = sys.stdout
    try:
        yield
    finally:
        if sys.stdout is not console:
            sys.stdout.flush()
            _loggers.append(sys.stdout)  # Dassl's Logger closes the console when it is collected
            sys.stdout = console


def _one_line(error: BaseException) -> str:
    """What `error` says, in one line: "reason: path" for a file, and no traceback for a loader worker."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if any("Original Traceback" in line for line in lines):  # torch's DataLoader hands a worker's error on like this
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(lines)


def _is_bad_input(error: Exception) -> bool:
    """Whether `error` means that the user's files or settings are wrong, rather than that the code is."""
    if isinstance(error, InputError | OSError | FloatingPointError | PeerLostError | torch.cuda.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return True  # torch's words for a checkpoint of another model
    # A worker's error is raised again by torch, so its place says nothing.
    place = None if "Original Traceback" in str(error) else _raised_in(error)
    ours = place is None or ROOT in place.parents and ".venv" not in place.relative_to(ROOT).parts
    library = None if place is None else next((name for name in READERS if name in place.parts), None)
    if isinstance(error, ValueError):
        return ours or library is not None
    if isinstance(error, KeyError):  # "Object name ... does not exist in ... registry"
        return "registry" in str(error)
    return isinstance(error, AssertionError | yaml.YAMLError) and library is not None and bool(str(error))


def _raised_in(error: BaseException) -> Path | None:
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename).resolve() if frames else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return 0, or 2 after bad input."""
    parser = build_parser()
    args = parser.parse_args(argv)
    number = getattr(args, "nproc", 1)
    if number < 1:
        parser.error(f"--nproc must be 1 or more, got {number}")
    if number > 1 and "LOCAL_RANK" not in os.environ:
        return launch(number, [__file__, *(sys.argv[1:] if argv is None else argv)])
    with joined():
        try:
            with _console_kept(), quiet_unless_first():
                run(args)
        except Exception as error:
            is_bad_input = _is_bad_input(error)
            if is_told_elsewhere(error):
                return 2 if is_bad_input else 1
            if not is_bad_input:
                raise
            if os.environ.get("CAPT_DEBUG", "") not in ("", "0"):
                traceback.print_exc()
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    code = serve(main) if VARIABLE in os.environ else main()
    gc.freeze()  # else Python searches all that torch has made for rings, before it ends all of it anyway
    sys.exit(code)
