"""Put CAPT into a CoOp-style repository, or take it out again.

    capt drop-in PATH_TO_REPO             # show what changes, and do it
    capt drop-in PATH_TO_REPO --check     # show it, change nothing; exit code 1 if there is something to do
    capt drop-in PATH_TO_REPO --undo      # take everything out; the repository is as it was

It copies trainers/capt, configs/trainers/CAPT, the scripts of scripts/capt that need nothing else, and the Dassl bridge
(as capt_compat), and adds three lines to the repository's train.py. It runs any number of times, overwrites nothing
that it did not put there, and ends with exit code 2 and the reason where it cannot go on. docs/DROP_IN.md says more.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .dropping.train_file import BY_HAND, NotUnderstoodError, with_plugin, without_plugin
from .dropping.tree import MANIFEST, Manifest, plan, put, remove, write_bytes
from .house import ROOT
from .tool import exit_code, parser_of

NEEDED = ("trainers", "datasets", "configs/trainers", "configs/datasets")
PACKAGES = ("torch", "torchvision", "yacs", "safetensors", "tqdm")


class RefusedError(ValueError):
    """Nothing was changed; the message says why."""


def read_train_file(host: Path) -> str:
    """The host's train.py, line endings as they are.

    Raises:
        RefusedError: this is no CoOp-style repository.
    """
    missing = [name for name in NEEDED if not (host / name).is_dir()]
    if not (host / "train.py").is_file():
        missing.append("train.py")
    if missing:
        raise RefusedError(f"{host} is no CoOp-style repository: it has no {', '.join(missing)}")
    try:
        return (host / "train.py").read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{host / 'train.py'} is not in UTF-8\n{BY_HAND}") from error


def drop_in(host: Path, check: bool) -> int:
    """Put the plugin into the host; with ``check``, only say what would be done."""
    source, manifest = read_train_file(host), Manifest.read(host)
    steps = plan(host, ROOT, manifest)
    if steps.blocked:
        listed = "\n".join(f"    {path} {why}" for path, why in steps.blocked.items())
        raise RefusedError(f"these files are in the way; move them, then run this again:\n{listed}")
    try:
        changed = with_plugin(source)
    except NotUnderstoodError as error:
        raise RefusedError(f"{error}\n{BY_HAND}") from error

    if changed == source and not steps.write and not steps.delete:
        print(f"{host}: CAPT is there and up to date")
        return 0
    print("".join(_difference(source, changed)), end="")
    for verb, paths in _by_verb(host, steps.write):
        for folder, number in Counter(str(Path(path).parent) for path in paths).items():
            print(f"{verb} {folder}/: {number} {'file' if number == 1 else 'files'}")
    for path in steps.delete:
        print(f"removes {path}")
    if check:
        return 1
    put(host, steps, manifest or Manifest(_digest(without_plugin(source))))
    if changed != source:
        write_bytes(host / "train.py", changed.encode("utf-8"))
    print(f"{host}: CAPT is there; run its train.py with --trainer CAPT --config-file configs/trainers/CAPT/...")
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        print(f"This Python lacks {', '.join(absent)}, which CAPT imports: pip install {' '.join(absent)}")
    return 0


def undo(host: Path) -> int:
    """Take the plugin out of the host; 1 if files stay because they were changed."""
    source, manifest = read_train_file(host), Manifest.read(host)
    if manifest is None:
        raise RefusedError(f"{host} has no {MANIFEST}: nothing was put there by this script")
    restored = without_plugin(source)
    print("".join(_difference(source, restored)), end="")
    if restored != source:
        write_bytes(host / "train.py", restored.encode("utf-8"))
    kept = remove(host, manifest)
    for path in kept:
        print(f"keeps {path}: it has been changed since it was put there")
    own = "" if _digest(restored) == manifest.train_file else "; other changes in train.py were left as they are"
    print(f"{host}: CAPT is taken out{own}")
    return 1 if kept else 0


def _by_verb(host: Path, paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    there = {path for path in paths if (host / path).exists()}
    yield "adds", [path for path in paths if path not in there]
    yield "replaces", [path for path in paths if path in there]


def _difference(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(
        before.splitlines(True), after.splitlines(True), "train.py", "train.py, with CAPT", n=1
    )
    return [line if line.endswith("\n") else line + "\n" for line in lines]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("repository", type=Path, help="root folder of a repository with CoOp's train.py")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="show what would change and change nothing")
    mode.add_argument("--undo", action="store_true", help="take CAPT out again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``."""
    args = build_parser().parse_args(argv)
    host = args.repository.expanduser().resolve()
    return exit_code(lambda: undo(host) if args.undo else drop_in(host, args.check))
