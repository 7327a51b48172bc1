"""The processes that this one has started, and what a signal to this one means to them.

A run answers a first signal by saving what it has and ending, and a second one by ending at once. So each must reach it
once: within :func:`forwarding`, what is started has a session of its own, where a terminal's Ctrl-C does not reach it
besides, and this process passes on what it gets. Without, as in a job of Slurm, which signals every process of a job
itself, nothing is passed on.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

from .steps import StopError

__all__ = ["call", "ended", "forwarding", "started", "stop_signal"]

# Signal -> what runs get; they know no hang-up. Windows has but the first two.
PASSED_ON = {name: name for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")} | {"SIGHUP": "SIGTERM"}
PASSED_ON = {name: to for name, to in PASSED_ON.items() if hasattr(signal, name)}

_running: set[subprocess.Popen[bytes]] = set()
_got: list[int] = []
_is_forwarding = False


def call(
    command: Sequence[str],
    environ: Mapping[str, str],
    log: IO[bytes] | None = None,
    hear: Callable[[str], None] | None = None,
) -> int:
    """Start a command, wait for it, and return its exit code; a negative one is the signal that ended it.

    Args:
        command: the words.
        environ: of the process.
        log: file for what it prints; this process's own output where none is given.
        hear: takes what it prints, line by line, in place of a file.

    Raises:
        OSError: it cannot be started.
        StopError: this process has been told to stop before.
    """
    out = log if hear is None else subprocess.PIPE
    err = subprocess.STDOUT if out else None
    with started(command, env=environ, stdout=out, stderr=err) as process:
        for line in process.stdout or ():  # as bytes: text would end lines at the returns of progress bars
            if hear is not None:
                hear(line.decode(errors="replace").removesuffix("\n"))
        return ended(process)


def started(command: Sequence[str], **popen: Any) -> subprocess.Popen[bytes]:
    """A process that gets what :func:`forwarding` passes on, until :func:`ended` is called.

    Args:
        command: the words.
        popen: as for :class:`subprocess.Popen`.

    Raises:
        OSError: it cannot be started.
        StopError: this process has been told to stop before.
    """
    if _got:
        raise StopError(code=128 + _got[0])
    process = subprocess.Popen(command, start_new_session=_is_forwarding, **popen)
    _running.add(process)
    if _got:  # the signal came while it was being started
        _send(process, _got[0])
    return process


def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, and return its exit code."""
    try:
        return process.wait()
    finally:
        _running.discard(process)


def stop_signal() -> int | None:
    """The signal that told this process to stop, if one did."""
    return _got[0] if _got else None


@contextmanager
def forwarding() -> Iterator[None]:
    """Pass on every signal to what runs, and start nothing more; where nothing runs, stop at once.

    Raises:
        StopError: a signal came while nothing ran; its code is 128 + the signal's number.
    """
    global _is_forwarding
    if _is_forwarding or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.Signals[name] for name in PASSED_ON]
    # What is ignored stays so: that is what nohup is for.
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[int, Any] = {number: signal.signal(number, _pass_on) for number in numbers}
    _is_forwarding = True
    try:
        yield
    finally:
        _is_forwarding = False
        _got.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(number: int, frame: FrameType | None) -> None:
    _got.append(number)
    started = list(_running)
    for process in started:
        _send(process, number)
    if not started:
        raise StopError(code=128 + number)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    process.send_signal(signal.Signals[PASSED_ON[signal.Signals(number).name]])
