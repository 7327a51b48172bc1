"""An order of the classes in which confusable ones stand together, and blocks of them for many classes."""

from __future__ import annotations

import math

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

__all__ = ["Order", "order_classes"]

OPTIMAL_UP_TO = 300  # optimal leaf ordering takes the cube of the number of classes


class Order:
    """An order of C classes, cut into blocks.

    Attributes:
        classes: the C labels, confusable ones beside each other.
        blocks: the same labels in groups, in the same order; one class each up to ``max_single`` classes.
    """

    def __init__(self, classes: list[int], blocks: list[list[int]]):
        self.classes = classes
        self.blocks = blocks


def order_classes(labels: np.ndarray, probs: np.ndarray, max_single: int = 160) -> Order:
    """Order classes by average-linkage clustering of how much confidence they lend each other.

    Args:
        labels: ``(M,)`` ground truth.
        probs: ``(M, C)`` confidences; soft ones say more than errors, of which most pairs have none.
        max_single: more classes than this are grouped, the square root of C to a block.
    """
    num_classes = probs.shape[1]
    if num_classes < 3:
        return Order(list(range(num_classes)), [[c] for c in range(num_classes)])
    total = np.zeros((num_classes, num_classes))
    np.add.at(total, labels, probs)
    mean = total / np.maximum(np.bincount(labels, minlength=num_classes), 1)[:, None]
    shared = mean + mean.T
    np.fill_diagonal(shared, 0.0)
    distance = 1.0 - np.sqrt(shared / max(shared.max(), 1e-12))
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = linkage(condensed, "average")
    if num_classes <= OPTIMAL_UP_TO:
        tree = optimal_leaf_ordering(tree, condensed)
    classes = leaves_list(tree).tolist()
    if num_classes <= max_single:
        return Order(classes, [[c] for c in classes])
    size = math.isqrt(num_classes - 1) + 1  # as many blocks as classes in a block, of neighbours in the tree
    return Order(classes, [classes[start : start + size] for start in range(0, num_classes, size)])
