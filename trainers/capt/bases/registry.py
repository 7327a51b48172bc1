"""Which base learners there are: those of this package, of packages beside it, and those that a user registers.

A learner is a name and a function that reads what another method trained. Three ways in:

- :func:`register_base_learner`, called by any module that has been imported;
- ``TRAINER.CAPT.BASE.MODULE``, which a run imports for the sake of such calls;
- the entry points of the group ``capt.base_learners`` of installed packages.

Importing a module runs its code. A run imports what its user's configuration names; whoever loads a finished run names
the module himself, since a run folder may come from anywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ..backbone.prompted_clip import PromptedCLIP
from .base_model import BaseModel, BaseSpec

__all__ = [
    "BASE_LEARNERS",
    "GROUP",
    "Loader",
    "find_learner",
    "import_learners",
    "learner_names",
    "register_base_learner",
]

GROUP = "capt.base_learners"
Loader = Callable[[PromptedCLIP, BaseSpec], BaseModel]

BASE_LEARNERS: dict[str, Loader] = {}


def register_base_learner(name: str, load: Loader) -> None:
    """Make a base learner known as ``TRAINER.CAPT.BASE.NAME``.

    Args:
        name: how configurations call it.
        load: called with the frozen CLIP and the :class:`BaseSpec`; returns the base model for them.

    Raises:
        ValueError: no name, no function, or a name that another learner has.
    """
    if not isinstance(name, str) or not name.strip() or not callable(load):
        raise ValueError(f"register_base_learner takes a name and a function, got {name!r} and {load!r}")
    other = BASE_LEARNERS.get(name)
    if other is not None and _source(other) != _source(load):
        raise ValueError(
            f'the base learner "{name}" is {_place(other)} already; register {_place(load)} by another name'
        )
    BASE_LEARNERS[name] = load


def _source(load: Loader) -> tuple[str, str]:
    """File and name of a function: a file that is imported twice, under two names, registers the same learner."""
    code = getattr(load, "__code__", None)
    return (_place(load), "") if code is None else (code.co_filename, code.co_name)


def _place(load: Loader) -> str:
    return f"{getattr(load, '__module__', '?')}.{getattr(load, '__qualname__', repr(load))}"


def learner_names() -> tuple[str, ...]:
    """All that :func:`find_learner` finds; those of this package first."""
    names = [name for registry in _registries() for name in registry]
    return tuple(dict.fromkeys([*names, *(point.name for point in _entry_points())]))


def find_learner(name: str) -> Loader | None:
    """The loader of that name, of this package, registered or of an installed package; else None."""
    for registry in _registries():
        if name in registry:
            return registry[name]
    return next((point.load() for point in _entry_points() if point.name == name), None)


def _registries() -> Iterator[dict[str, Loader]]:
    """This package's, and that of a second copy of it: the plugin may be here twice, installed and as a folder."""
    yield BASE_LEARNERS
    for name, module in list(sys.modules.items()):
        if name.endswith("capt.bases.registry") and name != __name__:
            yield vars(module).get("BASE_LEARNERS", {})


def _entry_points() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def import_learners(module: str | os.PathLike[str] | None) -> None:
    """Import a module or a Python file, which registers learners; nothing where it is empty.

    Args:
        module: ``package.module``, or the path of a ``.py`` file.

    Raises:
        ValueError: there is no such module or file.
    """
    name = os.fspath(module or "")
    if name:  # what the module imports as `capt` is this package, also where it lies as a folder in a repository
        sys.modules.setdefault("capt", sys.modules[__name__.removesuffix(".bases.registry")])
    if name.endswith(".py"):
        _import_file(Path(name).expanduser())
    elif name:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # a module that this one imports
            raise ValueError(
                f"{_asked(name)}, which is no module on the path; give a module or a Python file"
            ) from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{_asked(str(path))}, which is no file; give the path of a Python file, or a module")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"capt_learners_{path.stem}_{digest}"  # one import a file, however it is spelled
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise


def _asked(name: str) -> str:
    return f'TRAINER.CAPT.BASE.MODULE (base_module, --base-module) names "{name}"'
