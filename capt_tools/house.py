"""Where trainers, data sets, configurations, descriptions and the demo's CLIP are.

In a checkout that is the repository. ``trainers`` and ``datasets`` are too general as names in site-packages, so an
installed package carries what it needs of the checkout in a folder of its own, which setup.py fills.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["ROOT", "enter", "find", "install"]

_HERE = Path(__file__).resolve().parent
_CARRIED = _HERE / "checkout"
ROOT = _CARRIED if _CARRIED.is_dir() else _HERE.parent


def enter() -> None:
    """Put the checkout in front of ``sys.path``, and its trainers behind it for ``import capt``."""
    for folder in (str(ROOT / "trainers"), str(ROOT)):
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)


def find(path: str) -> str:
    """``path`` where it exists from the current folder, else where the checkout has it, else as it was given."""
    carried = ROOT / path
    return str(carried) if path and not os.path.exists(path) and carried.exists() else path


def install(extra: str) -> str:
    """The command that installs what the optional parts named ``extra`` need."""
    return f"pip install '{'capt-prompt-tuning' if ROOT == _CARRIED else '.'}[{extra}]'"
