"""Default configuration."""

from yacs.config import CfgNode

from .defaults import build_defaults

__all__ = ["cfg_default", "clean_cfg", "get_cfg_default"]

cfg_default = build_defaults()


def get_cfg_default() -> CfgNode:
    """Return a fresh, mutable copy of the default configuration (yacs ``CfgNode``)."""
    return cfg_default.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop every trainer's node from ``cfg.TRAINER`` but the one of ``trainer``; ``NAME`` stays.

    Args:
        cfg: Configuration, changed in place.
        trainer: Trainer name; its node is the one spelled in capitals.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
