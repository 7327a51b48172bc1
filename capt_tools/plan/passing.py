"""Signals that ask a plan to stop go to the run that it has started, which saves its state and ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["passed_on"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Wait for ``process`` in here: signals reach it, and end this process behind it.

    Outside of the main thread nothing is passed on.

    Raises:
        SystemExit: 128 + the signal, where one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def receive(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signum)

    taken = [signum for signum in SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, receive) for signum in taken}
    try:
        yield
        process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if came:
        raise SystemExit(128 + came[0])
