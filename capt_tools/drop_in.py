"""Put CAPT into a CoOp-style repository, or take it out again.

    capt drop-in PATH_TO_REPO             # show what changes, and do it
    capt drop-in PATH_TO_REPO --check     # show it, change nothing; exit code 1 if there is something to do
    capt drop-in PATH_TO_REPO --undo      # take everything out; the repository is as it was

It copies trainers/capt, configs/trainers/CAPT, the scripts of scripts/capt that need nothing else, and the Dassl bridge
(as capt_compat), adds three lines to the repository's train.py (or main.py), and tries whether that comes to training.
It runs any number of times, overwrites nothing that it did not put there, and ends with exit code 2 and the reason
where it cannot go on. docs/DROP_IN.md says more.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .dropping.host import Host, RefusedError, find_host
from .dropping.train_file import (
    BY_HAND,
    PIP_WAY,
    NotUnderstoodError,
    never_loads,
    unmarked,
    with_plugin,
    without_plugin,
)
from .dropping.tree import MANIFEST, Manifest, plan, put, remove, write_bytes
from .dropping.trial import what_is_in_the_way
from .house import ROOT
from .tool import exit_code, parser_of

PACKAGES = ("torch", "torchvision", "yacs", "safetensors", "tqdm")


def drop_in(host: Host, check: bool) -> int:
    """Put the plugin into the host; with ``check``, only say what would be done."""
    source, manifest = host.source(), Manifest.read(host.root)
    steps = plan(host.root, ROOT, manifest)
    if steps.blocked:
        listed = "\n".join(f"    {path} {why}" for path, why in steps.blocked.items())
        raise RefusedError(f"these files are in the way; move them, then run this again:\n{listed}")
    try:
        changed = with_plugin(source)
    except NotUnderstoodError as error:
        by_hand = f"{BY_HAND}\n{PIP_WAY}".format(entry=host.entry)
        raise RefusedError(f"{host.path}: {error}\n{by_hand}") from error

    if changed == source and not steps.write and not steps.delete:
        print(f"{host.root}: CAPT is there and up to date")
        return 0
    print("".join(_difference(host.entry, source, changed)), end="")
    for folder in host.made:
        print(f"makes {folder}/: this repository keeps its own trainers elsewhere")
    for verb, paths in _by_verb(host.root, steps.write):
        for folder, number in Counter(str(Path(path).parent) for path in paths).items():
            print(f"{verb} {folder}/: {number} {'file' if number == 1 else 'files'}")
    for path in steps.delete:
        print(f"removes {path}")
    if check:
        return 1
    put(host.root, steps, manifest or Manifest(_digest(without_plugin(source))))
    if changed != source:
        write_bytes(host.path, changed.encode("utf-8"))
    _say_how_to_run(host)
    return 0


def _say_how_to_run(host: Host) -> None:
    """The command that trains CAPT there; where it would not, what is in its way."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        print(f"This Python lacks {', '.join(absent)}, which CAPT imports: pip install {' '.join(absent)}")
    obstacle = None if absent else what_is_in_the_way(host)
    if obstacle:
        print(f"{host.root}: CAPT is there, but {host.entry} does not come to train it: {obstacle}")
        return
    how = f"run its {host.entry} with --trainer CAPT --config-file configs/trainers/CAPT/..."
    print(f"{host.root}: CAPT is there; {how}")
    if never_loads(host.source()):
        print(
            f"{host.entry} never calls trainer.load_model(), so that --eval-only has nothing to test; add "
            "trainer.load_model(args.model_dir, epoch=args.load_epoch) in front of it"
        )
    if host.entry != "train.py":
        print(f"scripts/capt speak of train.py: run them with DRY_RUN=1, and what they print with {host.entry}")


def undo(host: Host) -> int:
    """Take the plugin out of the host; 1 if files or lines stay because they are not known to be the plugin's."""
    source, manifest = host.source(), Manifest.read(host.root)
    if manifest is None:
        raise RefusedError(f"{host.root} has no {MANIFEST}: nothing was put there by this script")
    restored = without_plugin(source)
    print("".join(_difference(host.entry, source, restored)), end="")
    if restored != source:
        write_bytes(host.path, restored.encode("utf-8"))
    kept, by_hand = remove(host.root, manifest), unmarked(restored)
    for path in kept:
        print(f"keeps {path}: it has been changed since it was put there")
    for number, line in by_hand:
        print(f"keeps {host.entry} line {number}, which carries no mark; take it out by hand: {line}")
    own = "" if _digest(restored) == manifest.train_file else f"; other changes in {host.entry} were left as they are"
    print(f"{host.root}: CAPT is taken out{own}")
    return 1 if kept or by_hand else 0


def _by_verb(host: Path, paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    there = {path for path in paths if (host / path).exists()}
    yield "adds", [path for path in paths if path not in there]
    yield "replaces", [path for path in paths if path in there]


def _difference(entry: str, before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), entry, f"{entry}, with CAPT", n=1)
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
    folder = args.repository.expanduser().resolve()

    def act() -> int:
        host = find_host(folder)
        if host.root != folder:
            print(f"{folder} holds one repository of that kind: {host.root}")
        return undo(host) if args.undo else drop_in(host, args.check)

    return exit_code(act)
