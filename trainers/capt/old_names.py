"""The flat module names of version 0.1.0, for one more release: importing one gives the module that took its place.

``import capt.confusion_bank`` and ``from trainers.capt.prompted_clip import load_clip`` still work, with a
FutureWarning that names the new path. Old and new name are one module object.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import FrameType, ModuleType

__all__ = ["MOVED", "keep_old_names"]

MOVED = {
    "bank_builder": "bank.builder",
    "bank_files": "bank.files",
    "base_model": "bases.base_model",
    "base_models": "bases.learners",
    "confusion_bank": "bank.confusion_bank",
    "confusion_metrics": "run.metrics",
    "context": "bases.context",
    "diff_manner_adapter": "method.diff_manner_adapter",
    "distilled_base": "bases.distilled",
    "experts": "method.experts",
    "explanation": "use.explanation",
    "feature_cache": "run.feature_cache",
    "files": "run.files",
    "gain": "method.gain",
    "losses": "method.losses",
    "model": "method.model",
    "precision": "backbone.precision",
    "predictor": "use.predictor",
    "prompt_library": "bank.prompt_library",
    "prompted_bases": "bases.prompted",
    "prompted_clip": "backbone.prompted_clip",
    "run_record": "run.record",
    "sample_miner": "method.sample_miner",
    "semantic_miner": "method.semantic_miner",
    "serving": "run.serving",
    "stock_clip": "backbone.stock_clip",
    "templates": "bases.templates",
}


def keep_old_names(package: str) -> None:
    """Let the old names below ``package``, whatever its host calls it, find the modules of today."""
    if not any(isinstance(finder, _OldNames) and finder.package == package for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldNames(package))  # in front, lest a file of the old layout is left somewhere


class _OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an old name and loads the module of the new one."""

    def __init__(self, package: str):
        self.package = package
        self.moved = {f"{package}.{old}": f"{package}.{new}" for old, new in MOVED.items()}
        self.own_specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.moved:
            return None
        message = f"{name} is {self.moved[name]} now; the old name goes with the next release"
        frame = self._importing_frame()
        registry = frame.f_globals.setdefault("__warningregistry__", {})
        importer = frame.f_globals.get("__name__", "__main__")
        warnings.warn_explicit(
            message, FutureWarning, frame.f_code.co_filename, frame.f_lineno, module=importer, registry=registry
        )
        return importlib.machinery.ModuleSpec(name, self)

    def _importing_frame(self) -> FrameType:
        """The line that imports, above the import machinery and this package's ``__getattr__``."""
        between = ("importlib", "importlib._bootstrap", self.package)
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_globals.get("__name__") in between:
            frame = frame.f_back
        return frame

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.moved[spec.name])
        self.own_specs[module.__name__] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own_specs.pop(module.__name__)  # in its place stands the old name's by now
