"""What the tools have in common: help that ends with examples, and one line for what cannot be done."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["exit_code", "parser_of"]


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of description and examples."""


class DefaultsFormatter(Formatter, argparse.ArgumentDefaultsHelpFormatter):
    """Adds every option's default besides."""


def parser_of(doc: str, *, show_defaults: bool = False) -> argparse.ArgumentParser:
    """A parser for a module's docstring: its indented lines are the examples that end the help, the rest begins it.

    Args:
        doc: the docstring; examples start with ``capt COMMAND``, and name the tool as it was called.
        show_defaults: add them to the help of every option.
    """
    blocks = doc.strip().split("\n\n")
    examples = [re.sub(r"\bcapt [a-z-]+", "%(prog)s", block) for block in blocks if block.startswith("    ")]
    return argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description="\n\n".join(block for block in blocks if not block.startswith("    ")),
        epilog="\n".join(["examples:", *examples]),
        formatter_class=DefaultsFormatter if show_defaults else Formatter,
    )


def exit_code(
    work: Callable[[], int | None],
    *,
    bad_input: tuple[type[Exception], ...] = (OSError, ValueError),
    optional: Sequence[str] = (),
    hint: str = "",
) -> int:
    """The code that `work` returns, 0 where it returns none; 2 and one line on stderr where it cannot be done.

    Args:
        work: what the tool does.
        bad_input: exceptions whose message is for the user.
        optional: packages that an installation may lack.
        hint: what to do about one that is missing.
    """
    try:
        return work() or 0
    except ModuleNotFoundError as error:
        if error.name not in optional:
            raise
        print(f"error: {error.name} is missing; {hint}", file=sys.stderr)
    except bad_input as error:
        print(f"error: {error}", file=sys.stderr)
    return 2
