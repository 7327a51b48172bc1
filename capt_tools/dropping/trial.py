"""A host's entry point, tried in a process of its own up to the building of the trainer: what is in the way, and where.

Nothing is loaded and nothing trained: what would build the trainer gives one that writes down what it is asked to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .host import Host

__all__ = ["what_is_in_the_way"]

SECONDS = 180  # importing torch and a host's own packages takes seconds, on a slow disk a minute


def what_is_in_the_way(host: Host) -> str | None:
    """Why ``host``'s entry point cannot train CAPT, in one line; None where it gets as far as ``trainer.train()``."""
    with tempfile.TemporaryDirectory() as out:
        found = Path(out) / "found.json"
        script = Path(__file__).with_name("trial_run.py")
        command = [sys.executable, str(script), str(found), host.entry, *_arguments(host.root, out)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(command, cwd=host.root, env=environment, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"{host.entry} had not come to its trainer after {SECONDS} seconds"
        if found.is_file():
            return _said(host, json.loads(found.read_text(encoding="utf-8")))
    last = (done.stderr.decode(errors="replace").strip() or "no word").splitlines()[-1]
    return f"{host.entry} ended with exit code {done.returncode}: {last}"


def _arguments(root: Path, out: str) -> list[str]:
    """A command line as CoOp's users write it; the folder of the data is none, since no data set is built."""
    argv = ["--root", "data", "--seed", "1", "--trainer", "CAPT", "--output-dir", out]
    for flag, folder in (("--dataset-config-file", "configs/datasets"), ("--config-file", "configs/trainers/CAPT")):
        yamls = sorted((root / folder).glob("*.yaml"))
        argv += [flag, yamls[0].relative_to(root).as_posix()] if yamls else []
    return argv


def _said(host: Host, found: dict[str, Any]) -> str | None:
    steps = [f"{name}() in line {line}" for name, line in found["asked"] if name != "build_trainer"]
    if any(name == "train" for name, _ in found["asked"]):
        return None
    if not found["asked"]:
        return _error(host, found) if "error" in found else f"{host.entry} builds no trainer by dassl's build_trainer"
    if "error" in found and not steps:
        return None  # it wants more of the trainer than a stand-in has; that says nothing about CAPT
    return f"{host.entry} never calls trainer.train(); it calls {', '.join(steps) or 'nothing of the trainer'}"


def _error(host: Host, found: dict[str, Any]) -> str:
    file, line = found["place"]
    where = f"{file} line {line}" if line else str(file)
    lacks = found["lacks"]
    if not lacks:
        return f"{where}: {found['error']}: {found['message']}"
    is_own = (host.root / lacks.split(".")[0]).exists()
    return f"{where} imports {lacks}, {'a file that is not in the repository' if is_own else 'which is not installed'}"
