"""Registers the trainer with Dassl, without importing Dassl for those who only load a trained run.

A host's ``train.py`` has imported Dassl already, or does so later; :func:`load` never does. So the trainer is
registered at once where Dassl is there, and otherwise in the moment in which somebody imports ``dassl.engine``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["register_trainer"]

ENGINE = "dassl.engine"  # the module that holds TRAINER_REGISTRY
BRIDGE = "capt_compat"  # installed beside this package; brings a Dassl where there is none, repairs one in need


def register_trainer() -> None:
    """Register ``CAPT`` now, or as soon as Dassl is imported: the installed one, or else the bridge's."""
    if not _is_there("dassl"):
        _cross_bridge()  # puts its Dassl on the path, and imports none of it
    if ENGINE in sys.modules:
        _cross_bridge()
        importlib.import_module(".trainer", __package__)
    else:
        sys.meta_path.insert(0, _AfterEngine())


def _is_there(package: str) -> bool:
    # What was made by hand lies in sys.modules without a spec, at which find_spec raises.
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _cross_bridge() -> None:
    """Import the bridge where it is installed; it repairs a Dassl that cannot work on this torch, and says so."""
    if _is_there(BRIDGE):
        importlib.import_module(BRIDGE)


class _AfterEngine(importlib.abc.MetaPathFinder):
    """Sees the import of ``dassl.engine``: repairs come before it, :mod:`.trainer` behind it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != ENGINE:
            return None
        sys.meta_path.remove(self)
        _cross_bridge()  # before the engine, which a Dassl in need of repair cannot import
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            importlib.import_module(".trainer", __package__)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # this spec's loader is its own object
        return spec
