"""Distances between the rows of two matrices."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["compute_distance_matrix", "cosine_distance", "euclidean_squared_distance"]


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the distances ``(M, N)`` between the rows of ``input1`` (M, D) and ``input2`` (N, D).

    Args:
        input1: Features ``(M, D)``.
        input2: Features ``(N, D)``.
        metric: euclidean (squared) | cosine.

    Raises:
        ValueError: Unknown metric, or shapes that do not fit.
    """
    if input1.dim() != 2 or input2.dim() != 2 or input1.size(1) != input2.size(1):
        raise ValueError(f"expected features (M, D) and (N, D), got {tuple(input1.shape)} and {tuple(input2.shape)}")
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f'metric must be "euclidean" or "cosine", got "{metric}"')


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared Euclidean distances ``(M, N)``."""
    squares = input1.pow(2).sum(1, keepdim=True) + input2.pow(2).sum(1)  # (M, N)
    return squares - 2 * input1 @ input2.t()


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """One minus the cosine similarities, ``(M, N)``."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
