"""The plans of runs: what a method is, what a protocol asks for, and the commands that follow from both.

Only the standard library is needed here, and nothing of this repository but its yaml files, so that the scripts that
stand on these plans also work where they are copied into another repository.
"""

from __future__ import annotations

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """``capt plan``: print the commands of a protocol."""
    from .show import main as show

    return show(argv)
