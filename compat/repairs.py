"""Mends an installed Dassl that cannot work on the current torch and numpy: in memory, never in its files.

Dassl 0.6.3 (2022) fails in five places today. Each repair first looks whether it is needed, so a repaired or newer
Dassl is left alone, and says on stdout what it did.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

from .stand_ins import is_there

__all__ = ["repair_installed_dassl"]

_WILDS = "dassl.data.datasets.dg.wilds"


def repair_installed_dassl() -> None:
    """Apply each repair that the installed Dassl needs."""
    for repair in (_leave_out_wilds, _drop_verbose, _load_without_pickle, _rebind_successor, _give_back_int):
        message = repair()
        if message:
            print(f"Dassl repaired: {message}")


def _leave_out_wilds() -> str | None:
    """Dassl imports its WILDS data sets, and they import packages that hardly anybody has installed."""
    if all(map(is_there, ("wilds", "pandas"))) or _WILDS in sys.modules:
        return None
    spec = importlib.util.find_spec("dassl")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    if not (folder / "data" / "datasets" / "dg" / "wilds").is_dir():
        return None
    placeholder = types.ModuleType(_WILDS)
    placeholder.__dict__["__all__"] = []
    sys.modules[_WILDS] = placeholder
    return "wilds is not installed, so the data sets FMoW, IWildCam and Camelyon17 are left out"


def _drop_verbose() -> str | None:
    """Dassl's warm-up passes ``verbose`` to torch's scheduler, which has lost that argument."""
    module = importlib.import_module("dassl.optim.lr_scheduler")
    try:
        _warmup(module)
    except TypeError:
        pass
    else:
        return None

    def __init__(
        self: Any,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        LRScheduler.__init__(self, optimizer, last_epoch)

    module._BaseWarmupScheduler.__init__ = __init__
    return "warm-up schedules no longer pass verbose to torch"


def _load_without_pickle() -> str | None:
    """``torch.load`` refuses Dassl's checkpoints since 2.6, for they hold pickled objects."""
    if torch.torch_version.TorchVersion(torch.__version__) < "2.6":
        return None
    utils = importlib.import_module("dassl.utils")
    if utils.load_checkpoint.__module__.endswith(".bundled_dassl.utils.checkpoints"):  # by this or another copy of it
        return None
    _replace_everywhere("load_checkpoint", utils.load_checkpoint, _bundled("utils.checkpoints").load_checkpoint)
    return "checkpoints are read by a restricted unpickler, which runs none of their code"


def _rebind_successor() -> str | None:
    """A resumed warm-up schedule drives a dead copy of the optimiser: the rate stays frozen."""
    module = importlib.import_module("dassl.optim.lr_scheduler")
    if not isinstance(_warmup(module).state_dict()["successor"], LRScheduler):
        return None
    ours = _bundled("optim.lr_scheduler")
    module._BaseWarmupScheduler.state_dict = ours.WarmupScheduler.state_dict
    module._BaseWarmupScheduler.load_state_dict = ours.WarmupScheduler.load_state_dict
    return "a resumed warm-up schedule drives the live optimiser"


class _Numpy(types.ModuleType):
    """numpy, with the name that it lost."""

    int = int

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


def _give_back_int() -> str | None:
    """Dassl's RandAugment and AutoAugment write ``np.int``, a name that numpy lost in 1.24."""
    if hasattr(numpy, "int"):
        return None
    try:
        importlib.import_module("dassl.data.transforms")
    except ImportError:
        return None  # the host's own import says what is missing, and where
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("dassl.data.transforms")]
    asking = [module for module in modules if vars(module).get("np") is numpy and _writes_np_int(module)]
    for module in asking:
        vars(module)["np"] = _Numpy("numpy")
    return "randaugment and the auto-augment policies have np.int, which numpy lost" if asking else None


def _writes_np_int(module: types.ModuleType) -> bool:
    return re.search(r"\bnp\.int\b", inspect.getsource(module)) is not None


def _warmup(module: types.ModuleType) -> LRScheduler:
    """A small warm-up schedule, made as Dassl makes them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return module.ConstantWarmupScheduler(optimizer, StepLR(optimizer, 1), 1, 1e-5)


def _bundled(name: str) -> types.ModuleType:
    """Import a module of the bundled subset beside the installed Dassl, under a name of this package."""
    package = f"{__package__}.bundled_dassl"
    if package not in sys.modules:
        folder = Path(__file__).resolve().parent / "bundled" / "dassl"
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def _replace_everywhere(name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Set ``name`` to ``new`` in every module of Dassl that has imported ``old`` under it."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "dassl" and getattr(module, name, None) is old:
            setattr(module, name, new)
