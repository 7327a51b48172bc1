"""Trainer registry."""

from collections.abc import Callable

from yacs.config import CfgNode

from ..utils import Registry, check_availability
from .trainer import SimpleTrainer

__all__ = ["TRAINER_REGISTRY", "build_trainer"]

TRAINER_REGISTRY: Registry[Callable[[CfgNode], SimpleTrainer]] = Registry("TRAINER")


def build_trainer(cfg: CfgNode, name: str | None = None) -> SimpleTrainer:
    """Build the trainer ``name``, by default ``cfg.TRAINER.NAME``."""
    name = cfg.TRAINER.NAME if name is None else name
    check_availability(name, TRAINER_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading trainer: {name}")
    return TRAINER_REGISTRY.get(name)(cfg)
