"""Parameters and weights of modules."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn as nn
from torch import Tensor

from .checkpoints import load_checkpoint, strip_module

__all__ = [
    "count_num_param",
    "init_network_weights",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
]


def count_num_param(
    model: nn.Module | None = None, params: Iterable[nn.Parameter | dict[str, Any]] | None = None
) -> int:
    """Return the number of parameters, frozen ones included.

    Args:
        model: Module.
        params: Iterable of parameters, or of parameter groups; used when there is no model.

    Raises:
        ValueError: Neither is given.
    """
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("model and params must provide at least one.")
    total = 0
    for item in params:
        group = item["params"] if isinstance(item, dict) else [item]
        total += sum(p.numel() for p in group)
    return total


def open_all_layers(model: nn.Module) -> None:
    """Put the whole module in training mode with gradients on."""
    model.train()
    for p in model.parameters():
        p.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train only some children of a module; the others go to eval mode without gradients.

    Args:
        model: Module, possibly in DataParallel.
        open_layers: Name or list of names of children.

    Raises:
        AssertionError: A name is not an attribute of the module.
    """
    model = model.module if isinstance(model, nn.DataParallel) else model
    wanted = {open_layers} if isinstance(open_layers, str) else set(open_layers)
    for layer in sorted(wanted):
        if not hasattr(model, layer):
            raise AssertionError(f"{layer} is not an attribute")
    for name, child in model.named_children():
        is_open = name in wanted
        child.train(is_open)
        for p in child.parameters():
            p.requires_grad_(is_open)


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Copy those weights of a file into ``model`` whose name and size match; report the rest.

    Args:
        model: Module.
        weight_path: Checkpoint with a ``state_dict`` entry, or a bare state dict. ``module.`` in front is stripped.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = strip_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    matched = OrderedDict((k, v) for k, v in weights.items() if k in own and own[k].size() == v.size())
    discarded = [k for k in weights if k not in matched]
    own.update(matched)
    model.load_state_dict(own)
    if not matched:
        warnings.warn(f"Cannot load {weight_path} (check the key names manually)", stacklevel=2)
        return
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Draw the weights of every convolution and linear layer anew; batch norms get weight 1, biases 0.

    Args:
        model: Module.
        init_type: normal | xavier | kaiming | orthogonal.
        gain: Standard deviation (normal) or gain (xavier, orthogonal).
    """
    fill: dict[str, Callable[[Tensor], Tensor]] = {
        "normal": lambda w: nn.init.normal_(w, 0.0, gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=gain),
    }
    if init_type not in fill:
        raise NotImplementedError(f"init_type must be one of {sorted(fill)}, got {init_type!r}")
    for module in model.modules():
        name = type(module).__name__
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if weight is None:
            continue
        if "Conv" in name or "Linear" in name:
            fill[init_type](weight.data)
        elif "BatchNorm" in name or "InstanceNorm" in name:
            nn.init.constant_(weight.data, 1.0)
        else:
            continue
        if bias is not None:
            nn.init.constant_(bias.data, 0.0)
