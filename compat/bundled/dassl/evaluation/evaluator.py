"""Classification results: accuracy, error, macro F1, per class, confusion matrix."""

import os.path as osp
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from yacs.config import CfgNode

from ..utils.atomic import atomic_path
from ..utils.tools import mkdir_if_missing
from .build import EVALUATOR_REGISTRY

__all__ = ["Classification", "EvaluatorBase"]


class EvaluatorBase:
    """Collects model outputs batch by batch and turns them into results.

    Args:
        cfg: Configuration.
    """

    _lab2cname: dict[int, str] | None  # of an evaluator that names classes

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget everything."""
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take one batch: model output and ground truth."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Return the results, the deciding one first."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Single-label classification.

    Args:
        cfg: Configuration.
        lab2cname: Label -> class name; needed by TEST.PER_CLASS_RESULT.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT:
            assert lab2cname is not None, "TEST.PER_CLASS_RESULT needs the class names (lab2cname)"
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._labels: list[Tensor] = []
        self._predictions: list[Tensor] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take logits ``(B, C)`` and labels ``(B,)``; both stay on their device until ``evaluate``."""
        self._predictions.append(mo.max(1)[1].detach())
        self._labels.append(gt.detach())

    def evaluate(self) -> OrderedDict[str, float]:
        """Print the result block and return it.

        Returns:
            OrderedDict in percent: accuracy, error_rate, macro_f1 and, with TEST.PER_CLASS_RESULT, perclass_accuracy.

        Raises:
            ZeroDivisionError: No sample was processed.
        """
        if not self._labels:
            raise ZeroDivisionError("no sample was evaluated; is the data set's test split empty?")
        labels = torch.cat(self._labels).cpu().numpy()  # (M,)
        predictions = torch.cat(self._predictions).cpu().numpy()  # (M,)
        total, correct = len(labels), int((labels == predictions).sum())
        results: OrderedDict[str, float] = OrderedDict()
        results["accuracy"] = 100.0 * correct / total
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = 100.0 * macro_f1(labels, predictions)
        print(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {results['accuracy']:.1f}%\n"
            f"* error: {results['error_rate']:.1f}%\n"
            f"* macro_f1: {results['macro_f1']:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._print_per_class(labels, predictions)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix(labels, predictions)
        return results

    def _print_per_class(self, labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
        print("=> per-class result")
        accuracies = []
        assert self._lab2cname is not None  # __init__ has looked
        for label in np.unique(labels):
            hits = predictions[labels == label] == label
            accuracies.append(100.0 * int(hits.sum()) / len(hits))
            print(
                f"* class: {label} ({self._lab2cname[int(label)]})\t"
                f"total: {len(hits):,}\t"
                f"correct: {int(hits.sum()):,}\t"
                f"acc: {accuracies[-1]:.1f}%"
            )
        mean = float(np.mean(accuracies))
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_confusion_matrix(self, labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> None:
        mkdir_if_missing(self.cfg.OUTPUT_DIR)
        fpath = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        with atomic_path(fpath) as part:
            # A tensor where Dassl pickles a numpy array, so that torch.load reads it with weights_only=True.
            torch.save(torch.from_numpy(confusion_matrix(labels, predictions)), part)
        print(f"Confusion matrix is saved to {fpath}")


def macro_f1(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur in ``labels`` (range 0 to 1).

    Args:
        labels: ``(M,)`` int.
        predictions: ``(M,)`` int.
    """
    size = int(max(labels.max(), predictions.max())) + 1
    hits = np.bincount(labels[labels == predictions], minlength=size)
    in_labels = np.bincount(labels, minlength=size)
    in_predictions = np.bincount(predictions, minlength=size)
    present = in_labels > 0
    return float(np.mean(2 * hits[present] / (in_labels + in_predictions)[present]))


def confusion_matrix(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row-normalised confusion matrix over the sorted labels that occur in either argument.

    Args:
        labels: ``(M,)`` int.
        predictions: ``(M,)`` int.

    Returns:
        ``(N, N)`` float64; a row without samples is 0.
    """
    names, codes = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    size = len(names)
    rows, columns = codes[: len(labels)], codes[len(labels) :]
    counts = np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)
