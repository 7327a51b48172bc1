"""The one head there is: a multi-layer perceptron."""

from collections.abc import Sequence
from typing import Any

import torch.nn as nn

from .build import HEAD_REGISTRY

__all__ = ["mlp"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh}


class MLP(nn.Sequential):
    """Linear, batch norm, activation and dropout per hidden layer; ``out_features`` is the width of the last."""

    def __init__(
        self, in_features: int, hidden_layers: Sequence[int], activation: str, bn: bool, dropout: float
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden_layers:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        super().__init__(*layers)
        self.out_features = in_features


@HEAD_REGISTRY.register()
def mlp(
    in_features: int = 2048,
    hidden_layers: int | Sequence[int] = (),
    activation: str = "relu",
    bn: bool = True,
    dropout: float = 0.0,
    **kwargs: Any,
) -> MLP:
    """Build an MLP head.

    Args:
        in_features: Width of the backbone's features.
        hidden_layers: Width of each layer, or one width.
        activation: relu | leaky_relu | tanh.
        bn: Batch norm behind each linear layer.
        dropout: Probability; 0 leaves dropout out.
    """
    if isinstance(hidden_layers, int):
        hidden_layers = [hidden_layers]
    if not hidden_layers:
        raise ValueError("MODEL.HEAD.HIDDEN_LAYERS must name at least one layer width for the head mlp")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"MODEL.HEAD.ACTIVATION must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")
    return MLP(in_features, hidden_layers, activation, bn, dropout)
