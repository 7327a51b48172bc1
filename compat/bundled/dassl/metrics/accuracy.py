"""Top-k accuracy."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["compute_accuracy"]


def compute_accuracy(
    output: Tensor | tuple[Tensor, ...] | list[Tensor], target: Tensor, topk: Sequence[int] = (1,)
) -> list[Tensor]:
    """Return the top-k accuracies of a batch.

    Args:
        output: Logits ``(B, C)``; of a tuple or list, the first entry.
        target: Labels ``(B,)``.
        topk: The values of k.

    Returns:
        For each k a tensor ``(1,)`` in percent.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (B, K)
    hits = ranked == target.unsqueeze(1)  # (B, K)
    return [hits[:, :k].float().sum().reshape(1) * (100.0 / target.size(0)) for k in topk]
