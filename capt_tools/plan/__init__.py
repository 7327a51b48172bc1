"""The plans of runs: what a method is, what a protocol asks for, and the commands that follow from both.

Only the standard library is needed here, and nothing of this repository but its yaml files: drop_in.py copies this
folder into other repositories as ``capt_plan``, for the scripts that it puts there.
"""

from __future__ import annotations

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """``capt plan``: print the commands of a protocol."""
    from .show import main as show

    return show(argv)
