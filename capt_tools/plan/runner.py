"""Carries a plan out: says what is started, skips what is done, stops at the first run that fails."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO

from . import folders
from .children import call
from .lane import Lane
from .settings import Settings
from .steps import Job, StopError

__all__ = ["Runner", "quoted"]

# Commands of capt whose script has another name.
SCRIPTS = {"report": "confusion_report"}


class Runner:
    """Starts train.py and the tools as processes.

    Args:
        settings: which python, and whether to start anything at all.
        environ: of the processes; this one's where none is given.
        say: takes each line; where given, it gets what the processes print as well.
        log: file for all of it, which the processes write to themselves, so that they outlive this one.
        lane: process for the runs, one after another; one each where none is given.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] | None = None,
        say: Callable[[str], None] | None = None,
        log: IO[bytes] | None = None,
        lane: Lane | None = None,
    ) -> None:
        self.settings = settings
        # Where encoded images go if the data folder cannot take them.
        features = {"CAPT_FEATURES": os.path.abspath(f"{settings.output}/features")}
        self.environ = {**features, **(os.environ if environ is None else environ)}
        self._say = say
        self._log = log
        self._lane = lane

    def run(self, plan: Iterable[Job | str]) -> None:
        """Carry a plan out.

        Raises:
            StopError: a run failed, or the plan cannot go on.
        """
        for step in plan:
            if isinstance(step, str):
                self.say(step)
            elif folders.is_done(step.folder):
                self.say(f"Results are available in {step.folder} (skip)")
            else:
                command = [self.settings.python, self.settings.path("train.py"), *step.arguments]
                self.say(f"Run this job and save the output to {step.folder}\n{quoted(command)}")
                self.start(command, self._lane)

    def tool(self, name: str, *arguments: str) -> list[str]:
        """The command of a tool: its file in scripts/, which an installed package lacks, else that of ``capt``."""
        script = f"scripts/{SCRIPTS.get(name, name)}.py"
        words = [self.settings.path(script)] if self.settings.has(script) else ["-m", "capt_tools", name]
        return [self.settings.python, *words, *arguments]

    def start(self, command: Sequence[str], lane: Lane | None = None) -> None:
        """Start a command and wait for it, unless nothing is to be started; or have ``lane`` do it.

        Raises:
            StopError: it failed; with its exit code.
        """
        if self.settings.is_dry:
            return
        try:
            if lane is None or self._log is not None:  # a lane's output goes one way for all of its runs
                code = call(command, self.environ, self._log, self._say)
            else:
                code = lane.call(command, self.environ, self._say)
        except OSError as error:
            raise StopError(f"cannot start {command[0]} ({error.strerror}); set PYTHON to a python", 127) from error
        if code:
            raise StopError(code=code if code > 0 else 128 - code)

    def say(self, text: str) -> None:
        """Print lines at once and together, as what is started writes to the same place."""
        if self._log is not None:
            self._log.write(f"{text}\n".encode())
            self._log.flush()
        elif self._say is None:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        else:
            for line in text.split("\n"):
                self._say(line)

    def warn(self, text: str) -> None:
        """Print lines on stderr."""
        if self._say is None and self._log is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self.say(text)


def quoted(command: Iterable[str]) -> str:
    """A command to be pasted into a shell, quoted and ended as ``printf '%q '`` does it."""
    return "".join(f"{_quoted(word)} " for word in command)


def _quoted(word: str) -> str:
    if not word:
        return "''"
    if not word.isprintable():
        return "$'" + "".join(_escaped(char) for char in word) + "'"
    word = re.sub(r"""[] !"$&'()*,;<>?[\\^`{|}]""", r"\\\g<0>", word)
    word = re.sub(r"(?<=[:=])~|^~", r"\\~", word)
    return "\\" + word if word.startswith("#") else word


def _escaped(char: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}
    return named.get(char, char if char.isprintable() else f"\\{ord(char):03o}")
