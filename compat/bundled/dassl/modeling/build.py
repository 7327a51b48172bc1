"""Registries of model parts. The bundled subset registers the head ``mlp`` and no backbone; plugins add theirs."""

from collections.abc import Callable
from typing import Any

import torch.nn as nn

from ..utils import Registry, check_availability

__all__ = [
    "BACKBONE_REGISTRY",
    "HEAD_REGISTRY",
    "NETWORK_REGISTRY",
    "Backbone",
    "build_backbone",
    "build_head",
    "build_network",
]

Builder = Callable[..., Any]  # parts of networks have only out_features in common

BACKBONE_REGISTRY: Registry[Builder] = Registry("BACKBONE")
HEAD_REGISTRY: Registry[Builder] = Registry("HEAD")
NETWORK_REGISTRY: Registry[Builder] = Registry("NETWORK")


class Backbone(nn.Module):
    """Module that gives features; ``out_features`` is their width."""

    def __init__(self) -> None:
        super().__init__()
        self._out_features: int | None = None

    def forward(self) -> None:
        """Return features ``(B, out_features)`` of images ``(B, 3, H, W)``."""

    @property
    def out_features(self) -> int | None:
        """Width of the features; None until the subclass sets ``_out_features``."""
        return self._out_features


def _build(registry: Registry[Builder], kind: str, name: str, verbose: bool, kwargs: dict[str, Any]) -> Any:
    check_availability(name, registry.registered_names())
    if verbose:
        print(f"{kind}: {name}")
    return registry.get(name)(**kwargs)


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build the registered backbone ``name``."""
    return _build(BACKBONE_REGISTRY, "Backbone", name, verbose, kwargs)


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build the registered head ``name``."""
    return _build(HEAD_REGISTRY, "Head", name, verbose, kwargs)


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> Any:
    """Build the registered network ``name``."""
    return _build(NETWORK_REGISTRY, "Network", name, verbose, kwargs)
