"""Stands in for packages that a host's code imports at its top and hardly ever uses, where they are not installed.

Dassl imports ``gdown``, and downloads with it; copies of OpenAI's ``clip.py`` begin with ``from pkg_resources
import packaging``, which current setuptools no longer ships. Each stand-in is made, and announced, when somebody asks
for the package and nobody else has it; what it lacks raises ImportError with the fix.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = ["is_there", "stand_in_for_absent_packages"]

# Package -> what its stand-in holds, and what is said of it.
STAND_INS = {
    "gdown": ((), "gdown is not installed, so Dassl downloads no data sets"),
    "pkg_resources": (
        ("packaging",),
        "pkg_resources is not installed; `packaging`, all that clip wants of it, stands in",
    ),
}
FIX = {"gdown": "pip install gdown", "pkg_resources": 'pip install "setuptools<81"'}


def is_there(name: str) -> bool:
    """Whether the package can be imported; a module that somebody made by hand counts, with or without a spec."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def stand_in_for_absent_packages() -> None:
    """Serve the stand-ins from now on, to those who find no package of that name."""
    if not any(isinstance(finder, _LastResort) for finder in sys.meta_path):
        sys.meta_path.append(_LastResort())


class _LastResort(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last finder that Python asks; it knows the packages of :data:`STAND_INS` only."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in STAND_INS else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        held, message = STAND_INS[name]
        vars(module).update({part: importlib.import_module(part) for part in held}, __getattr__=_refusal(name))
        if "packaging" in held:
            importlib.import_module("packaging.version")  # clip reads it as an attribute
        print(f"Host repaired: {message}")


def _refusal(name: str) -> Any:
    def __getattr__(attribute: str) -> Any:
        if attribute.startswith("__"):  # Python's own questions to a module
            raise AttributeError(attribute)
        raise ImportError(f"{name} is not installed, and its stand-in has no {attribute}: {FIX[name]}")

    return __getattr__
