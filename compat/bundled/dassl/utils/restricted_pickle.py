"""Reads legacy checkpoints without running what is in them.

Dassl pickles the scheduler object behind its warm-up wrapper, and with it the optimiser, so its checkpoints cannot be
loaded with ``weights_only=True``. Here such a file is unpickled with a fixed list of names: containers and tensors are
built; the optimiser and scheduler classes are replaced by inert objects that only hold their attributes. Any other
name is refused.
"""

import collections
import pickle
import types
from typing import IO, Any

import torch
import torch._utils

__all__ = ["ForbiddenGlobalError", "pickle_module"]


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A checkpoint wants a class or function that is not on the list."""


class InertObject:
    """Holds the attributes of a pickled optimiser or scheduler; has no behaviour."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


_BUILT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "Counter"): collections.Counter,  # milestones of MultiStepLR
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}

_INERT = {
    "torch.optim.sgd": ("SGD",),
    "torch.optim.adam": ("Adam",),
    "torch.optim.adamw": ("AdamW",),
    "torch.optim.radam": ("RAdam",),
    "torch.optim.rmsprop": ("RMSprop",),
    "torch.optim.lr_scheduler": ("StepLR", "MultiStepLR", "CosineAnnealingLR"),
    "dassl.optim.radam": ("RAdam",),
    "dassl.optim.lr_scheduler": ("ConstantWarmupScheduler", "LinearWarmupScheduler"),
}

_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that knows the names above and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for ``module.name``; ForbiddenGlobalError if it is not on the list."""
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) in _BUILT:
            return _BUILT[module, name]
        if name in _INERT.get(module, ()):
            return InertObject
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        # Storage classes and _rebuild_* of torch proper are handled by torch.load's own subclass of this one;
        # it asks here only for FloatStorage and its like when the file is in the format before torch 1.6.
        if module in ("torch", "torch.storage") and name.endswith("Storage") and hasattr(torch, name):
            return getattr(torch, name)
        raise ForbiddenGlobalError(f"{module}.{name}")


def _load(file: IO[bytes], **kwargs: Any) -> Any:
    return RestrictedUnpickler(file, **kwargs).load()


# What torch.load takes as pickle_module.
pickle_module = types.SimpleNamespace(
    __name__="restricted_pickle", Unpickler=RestrictedUnpickler, load=_load, UnpicklingError=pickle.UnpicklingError
)
