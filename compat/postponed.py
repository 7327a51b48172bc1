"""Parts of torchvision that no transform needs: they are loaded when somebody asks for anything in them.

``import torchvision`` brings its models and its operators for detection, and those bring torch's compiler with sympy
and triton behind it, which takes about as long as torch itself, in every process, for images that use none of it.

Python's own LazyLoader loads a package on the question where its modules lie, too, and then runs those that the package
has imported a second time (``import torchvision.models.resnet``).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = ["POSTPONED", "postpone"]

POSTPONED = ("torchvision.models", "torchvision.ops")
# What the import system sets and reads of a module without wanting anything in it.
ABOUT = {"__class__", "__spec__", "__loader__", "__name__", "__package__", "__path__", "__file__"}

_loading = threading.RLock()


def postpone() -> None:
    """Load those of :data:`POSTPONED` that are not there yet when something in them is asked for."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what Python's own finder does, to be run later."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in POSTPONED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Postponing(spec.loader)
        return spec


class _Postponing(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Postponed


class _Postponed(ModuleType):
    def __getattribute__(self, name: str) -> Any:
        if name not in ABOUT:
            with _loading:  # other threads wait until it is whole
                _load(self)
        return ModuleType.__getattribute__(self, name)


def _load(module: ModuleType) -> None:
    """Run a module unless it has been, or is being run and asked by what it imports."""
    spec = module.__spec__
    if spec is None or not isinstance(spec.loader, _Postponing):
        return
    postponing, spec.loader = spec.loader, spec.loader.loader
    module.__loader__ = spec.loader
    try:
        spec.loader.exec_module(module)
    except BaseException:
        spec.loader = module.__loader__ = postponing  # the next one who asks is told the same
        raise
    module.__class__ = ModuleType
