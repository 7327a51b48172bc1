"""Data set registry."""

from collections.abc import Callable

from yacs.config import CfgNode

from ...utils import Registry, check_availability
from .base_dataset import DatasetBase

__all__ = ["DATASET_REGISTRY", "build_dataset"]

DATASET_REGISTRY: Registry[Callable[[CfgNode], DatasetBase]] = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> DatasetBase:
    """Build the data set ``cfg.DATASET.NAME``."""
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
