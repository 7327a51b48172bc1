"""Mends an installed Dassl that cannot work on the current torch, in memory, never in its files."""

from __future__ import annotations


def repair_installed_dassl() -> None:
    """Apply each repair that the installed Dassl needs."""
