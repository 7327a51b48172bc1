"""Signals that ask a run to stop: the first is acted on where the run can go on later, a second ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

__all__ = ["SIGNALS", "Interrupted", "Interruption", "QuietStart"]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
# Schedulers signal every process of a job, and parents pass on what they get: for so many seconds it is one signal.
SAME = 1.0


class Interrupted(SystemExit):
    """A signal asked the run to stop; the process ends with 128 + its number unless somebody catches this.

    Attributes:
        signum: the signal.
        is_told: whether a line has said where the run stopped.
    """

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signum = signum
        self.is_told = False

    @property
    def name(self) -> str:
        """Such as SIGTERM."""
        return signal.Signals(self.signum).name


class Interruption:
    """Takes the signals while it is entered, and gives them back to whoever had them before.

    Outside of :meth:`waiting` the first signal raises :class:`Interrupted` at once; inside, the run asks by
    :meth:`check`. A signal that was ignored stays ignored, and outside of the main thread nothing is taken.

    Attributes:
        signum: the signal that was received, or None.
        is_agreed: whether every process of the run stops by it, in the same place.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.is_agreed = False
        self._is_waiting = False
        self._since = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) != signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Raise nothing in here unless :meth:`check` asks; what came meanwhile is raised at the end."""
        self._is_waiting = True
        try:
            self.check()
            yield
        finally:
            self._is_waiting = False
        self.check()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        is_first = self.signum is None
        if os.getpid() != self._process or (not is_first and time.monotonic() - self._since > SAME):
            signal.signal(signum, signal.SIG_DFL)  # a child of the run, or a second signal: it ends here
            os.kill(os.getpid(), signum)
        elif is_first:
            self.signum, self._since = signum, time.monotonic()
            if not self._is_waiting:
                self.check()


@dataclass(frozen=True)
class QuietStart:
    """For a loader's ``worker_init_fn``: its processes outlive a signal to the whole group until the step has ended.

    Attributes:
        then: what the loader's workers did first before.
    """

    then: Callable[[int], None] | None = None

    def __call__(self, worker: int) -> None:
        """In the worker of that number."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if self.then is not None:
            self.then(worker)
