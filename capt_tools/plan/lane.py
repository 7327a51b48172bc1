"""A process that does one run of train.py after another, so that Python and torch are started, and CLIP is read, once.

It is started with the command of its first run, as by hand, and with :data:`VARIABLE` in its environment. A train.py
that knows this variable does not end then: it says how its run ended, and takes the arguments of the next one from its
standard input (:mod:`capt_tools.many_runs`). One that does not, as another repository's, ends with its run, and the
next run gets a process of its own; so it does after a run that broke down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from .children import ended, started

__all__ = ["DONE", "VARIABLE", "Lane"]

VARIABLE = "CAPT_LANE"  # number of the file that the end of a run is written to
DONE = "\0capt: done with code "  # stands before the exit code of a run


class Lane:
    """Runs commands ``python train.py ARGUMENT...``, in one process where it can; close it behind the last one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: IO[bytes] | None = None
        self._started: tuple[list[str], dict[str, str], bool] | None = None

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def call(
        self, command: Sequence[str], environ: Mapping[str, str], hear: Callable[[str], None] | None = None
    ) -> int:
        """Do a run and return its exit code; a negative one is the signal that ended its process.

        Args:
            command: python, train.py, arguments.
            environ: of the process.
            hear: takes what it prints, line by line; it goes to this process's own output where none is given.

        Raises:
            OSError: the process cannot be started.
            StopError: this process has been told to stop before.
        """
        alike = list(command[:2]), dict(environ), hear is not None
        if self._started != alike or not self._send(command[2:]):
            self.close()
            self._start(command, environ, is_heard=hear is not None)
            self._started = alike
        for text in self._lines():
            line, done, code = text.partition(DONE)
            if hear is not None and (line or not done):
                hear(line)
            if done:
                return int(code)
        return self.close()

    def close(self) -> int:
        """End the process when its run is done, and return its exit code."""
        process, self._process, self._started = self._process, None, None
        if process is None:
            return 0
        # It may be gone, with words of ours still to be read.
        with contextlib.suppress(BrokenPipeError), _outliving_pipes():
            if process.stdin is not None:
                process.stdin.close()
        code = ended(process)
        if self._answers is not None:
            self._answers.close()
        return code

    def _start(self, command: Sequence[str], environ: Mapping[str, str], is_heard: bool) -> None:
        pipe = subprocess.PIPE
        if is_heard:  # both streams and the ends of runs in one, in the order in which they come
            environ = {**environ, VARIABLE: "1"}
            out = subprocess.STDOUT
            self._process = started(command, env=environ, stdin=pipe, stdout=pipe, stderr=out)
            self._answers = self._process.stdout
            return
        answers, end = os.pipe()
        try:
            environ = {**environ, VARIABLE: str(end)}
            self._process = started(command, env=environ, stdin=pipe, pass_fds=[end])
        except BaseException:
            os.close(answers)
            raise
        finally:
            os.close(end)
        self._answers = open(answers, "rb")  # noqa: SIM115 - closed with the process

    def _send(self, arguments: Sequence[str]) -> bool:
        """Hand the process its next run; False where it is gone."""
        if self._process is None or self._process.stdin is None or self._process.poll() is not None:
            return False
        try:
            with _outliving_pipes():
                self._process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
                self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def _lines(self) -> Iterator[str]:
        while self._answers is not None and (line := self._answers.readline()):  # as bytes: progress bars hold returns
            yield line.decode(errors="replace").removesuffix("\n")


@contextlib.contextmanager
def _outliving_pipes() -> Iterator[None]:
    """A pipe whose reader is gone is an error in here, also in the scripts, which end quietly where theirs is."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE in signal.sigpending():
            signal.sigwait({signal.SIGPIPE})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
