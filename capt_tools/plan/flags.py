"""The variables of the scripts as flags, for the commands of ``capt``: a flag goes before its variable."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .settings import Settings, helps

__all__ = ["add_flags", "environ_of", "house", "settings_here"]


def house() -> str:
    """The folder that holds train.py, configs/ and assets/, as the current folder sees it."""
    tools = Path(__file__).resolve().parents[1]
    root = tools / "checkout" if (tools / "checkout").is_dir() else tools.parent
    return "." if root == Path.cwd() else str(root)


def add_flags(parser: argparse._ActionsContainer, *names: str) -> None:
    """Add the flags of some variables, of all where none is named."""
    for name, meaning in helps().items():
        if not names or name in names:
            parser.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=meaning)


def environ_of(args: argparse.Namespace) -> dict[str, str]:
    """The environment, with the flags that were given in the places of their variables."""
    given = {name.upper(): value for name in helps() if (value := getattr(args, name, None)) is not None}
    return {**os.environ, **given}


def settings_here(environ: dict[str, str]) -> Settings:
    """The settings for a command that was called from any folder, by the python that runs it."""
    return Settings.read(environ, house(), sys.executable)
