"""A sweep on this machine: a pool over its GPUs, or so many runs at a time. Needs neither Slurm nor submitit.

What runs holds a lock on its log, as this process does on the sweep's: a lock is gone when its holder is, however that
ended. So it is known what runs, from any terminal, and runs that outlive a killed client are waited for.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..plan.children import stop_signal
from ..plan.runner import Runner
from ..plan.steps import StopError
from .cells import Failure, Node, carry_out
from .pool import run_pool
from .state import Record, Sweep, last_line

__all__ = ["cancel", "client_of", "in_groups", "is_locked", "lanes_of", "run"]

# Whoever asks whether a file is locked holds the lock for a moment.
GLANCE = 0.5


def lanes_of(devices: str | None, at_once: int | None, environ: Mapping[str, str], processes: int = 1) -> list[str]:
    """What runs take for themselves: a GPU for each of their processes; the empty word is the whole machine.

    Raises:
        StopError: there are too few GPUs for one run.
    """
    return in_groups(_devices(devices, at_once, environ), processes)


def in_groups(devices: list[str], number: int) -> list[str]:
    """Names of devices, so many to a word; words that hold several already stay as they are.

    Raises:
        StopError: there are too few for one word.
    """
    if number == 1 or not any(devices) or any("," in name for name in devices):
        return devices
    if len(devices) < number:
        raise StopError(f"a run of {number} processes needs as many GPUs, there are {len(devices)}; lower NPROC")
    return [",".join(devices[i : i + number]) for i in range(0, len(devices) - number + 1, number)]


def _devices(devices: str | None, at_once: int | None, environ: Mapping[str, str]) -> list[str]:
    named = devices or environ.get("GPUS") or (environ.get("CUDA_VISIBLE_DEVICES") or "").replace(",", " ")
    if named.split():
        return named.split()
    if not at_once and "CUDA_VISIBLE_DEVICES" not in environ and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
        if listed.returncode == 0 and gpus:
            return [str(number) for number in range(len(gpus))]
    return [""] * (at_once or 1)


def run(sweep: Sweep, lanes: list[str], environ: Mapping[str, str], is_debug: bool = False) -> int:
    """Do what is left of a sweep, and say how it goes.

    Args:
        sweep: the sweep.
        lanes: one run at a time on each.
        environ: of the runs.
        is_debug: print what the runs print, and stop at the first that fails.

    Returns:
        0, or 1 if something failed.

    Raises:
        StopError: the sweep is being run already, or a signal came.
    """
    with _only_client(sweep):
        sweep.save()
        nodes = sweep.nodes()
        left = [node for node in nodes if not node.is_done()]
        print(f"{len(nodes) - len(left)} of {len(nodes)} cells are done already; logs are in {sweep.folder}/cells")
        if len(lanes) > 1 and not environ.get("OMP_NUM_THREADS"):
            at_once = len(lanes) * sweep.settings.processes
            environ = {**environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
        failed = 0

        def work(node: Node, lane: str) -> bool:
            nonlocal failed
            if node.is_done():
                return True
            visible = {"CUDA_VISIBLE_DEVICES": lane} if lane else {}
            failure = _run(sweep, node, {**environ, **visible}, f" on GPU {lane}" if lane else "", is_debug)
            failed += failure is not None
            return stop_signal() is None and not (is_debug and failure)

        run_pool(nodes, lanes, work)
    if (number := stop_signal()) is not None:
        print("Stopped; the same command goes on where this one ended")
        raise StopError(code=128 + number)
    return 1 if failed else 0


def _run(sweep: Sweep, node: Node, environ: Mapping[str, str], where: str, is_debug: bool) -> Failure | None:
    path, start = sweep.log(node.cell), time.monotonic()
    with open(path, "ab") as log:
        if not _lock(log, GLANCE):
            _say(f"waits: {node.cell.name} still runs, by a client that is gone")
            while not _lock(log, GLANCE) and stop_signal() is None:
                pass
        sweep.note(node.cell, Record("running"))
        _say(f"begins: {node.cell.name}{where}")
        runner = Runner(sweep.settings, environ, log=None if is_debug else log)
        failure = carry_out(sweep.settings, sweep.protocol, node.cell, runner)
    seconds = f"{time.monotonic() - start:.0f} s"
    if failure is None:
        sweep.note(node.cell, None)
        _say(f"done: {node.cell.name}, {seconds}")
    elif stop_signal() is not None:
        sweep.note(node.cell, Record("interrupted", last_line(path)))
        _say(f"stopped: {node.cell.name}, {seconds}")
    else:
        line = failure.line or last_line(path)
        sweep.note(node.cell, Record("failed", line))
        _say(f"failed: {node.cell.name} ({failure.script}), {seconds}: {line}")
    return failure


def _say(line: str) -> None:
    print(line, flush=True)


def _lock(file: IO[bytes], patience: float = 0.0) -> bool:
    """Take the lock of a file, unless another process holds it for so many seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock on a file."""
    try:
        with open(path, "rb") as file:
            return not _lock(file)
    except FileNotFoundError:
        return False


@contextmanager
def _only_client(sweep: Sweep) -> Iterator[None]:
    if not sweep.folder.is_dir():
        sweep.save()
    path = sweep.folder / "client"
    with open(path, "a+b") as file:
        if not _lock(file, GLANCE):
            raise StopError(
                f"{' on '.join(client_of(sweep) or ('a process',))} runs this sweep already; see its status"
            )
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}".encode())
        file.flush()
        yield


def client_of(sweep: Sweep) -> tuple[str, ...] | None:
    """Process and host that run a sweep; None where nobody does."""
    path = sweep.folder / "client"
    if not is_locked(path):
        return None
    return tuple(path.read_text().split())


def cancel(sweep: Sweep) -> list[str]:
    """Tell the client that runs a sweep to stop; its runs save and end.

    Returns:
        What was told to stop.

    Raises:
        StopError: it runs on another machine.
    """
    client = client_of(sweep)
    if client is None:
        return []
    pid, host = client
    if host != socket.gethostname():
        raise StopError(f"process {pid} on {host} runs this sweep; cancel it there")
    os.kill(int(pid), signal.SIGTERM)
    return [f"process {pid}"]
