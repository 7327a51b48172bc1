"""What stands behind the scripts of scripts/: ``python -m capt_tools.plan.script SCRIPT PROTOCOL TRAINER ARGUMENT...``.

They run from the repository root. A mistake is one line on stderr and exit code 2; a run that fails ends the script
with its exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from .ablate import ablate
from .children import forwarding
from .lane import Lane
from .methods import method_of
from .protocols import USAGE, plan
from .reproduce import PROTOCOLS, reproduce
from .runner import Runner
from .settings import Settings
from .steps import Plan, StopError

__all__ = ["exit_code", "main"]


def main(argv: list[str] | None = None) -> int:
    """Run the script whose name as it was called, protocol and arguments are ``argv``."""
    script, name, *words = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: _WHOLES.get(name, _protocol)(script, name, words))


def exit_code(work: Callable[[], int]) -> int:
    """The code that ``work`` returns, or that it stopped with, after the message; runs get this process's signals."""
    try:
        with forwarding():
            return work()
    except StopError as error:
        if error.line:
            print(error.line, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130


def _protocol(script: str, name: str, words: list[str]) -> int:
    trainer, *arguments = words
    usage = USAGE[name] if trainer != "PromptKD" else USAGE[name].replace("[DATASET]", "DATASET")
    _need(script, usage, arguments)
    settings = Settings.read()
    with Lane() as lane:
        Runner(settings, lane=lane).run(plan(settings, method_of(trainer), name, *arguments))
    return 0


def _need(script: str, usage: str, arguments: list[str]) -> None:
    """Stop unless there are as many arguments as the words of ``usage`` that stand in no brackets."""
    outside = [word for word in usage.split(" [")[0].split() if not word.startswith("[")]
    if len(arguments) < len(outside):
        raise StopError(f"usage: bash {script} {usage}")


def _ablate(script: str, name: str, words: list[str]) -> int:
    _need(script, "DATASET [SEED...]", words)
    settings = Settings.read()
    settings = replace(settings, output=f"{settings.output}/ablation")
    return _compared(settings, ablate(settings, os.environ, words[0], words[1:] or settings.seeds))


def _reproduce(script: str, name: str, words: list[str]) -> int:
    usage = "DATASET SEED [--protocol honest|published]"
    _need(script, usage, words)
    flag, protocol = [*words[2:4], "", ""][:2]
    if (flag, protocol) not in [("", ""), *(("--protocol", known) for known in PROTOCOLS)]:
        raise StopError(f"usage: bash {script} {usage}")
    protocol, settings = protocol or "honest", Settings.read()
    settings = replace(settings, output=f"{settings.output}/reproduce/{protocol}")
    return _compared(settings, reproduce(settings, os.environ, words[0], words[1], protocol))


def _compared(settings: Settings, whole: Plan) -> int:
    """Carry a plan out and print the table of its runs."""
    with Lane() as lane:
        runner = Runner(settings, lane=lane)
        runner.run(whole)
    command = runner.tool("compare", settings.output)
    runner.say(" ".join(command))
    runner.start(command)
    return 0


_WHOLES = {"ablate": _ablate, "reproduce": _reproduce}

if __name__ == "__main__":  # a process of its own, which ends quietly where its reader has gone, as a shell does
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
