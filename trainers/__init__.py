"""Importing this package registers every trainer; :func:`extend_cfg` adds their configuration nodes."""

from __future__ import annotations

from yacs.config import CfgNode

from . import (
    capt,
    clip_adapter,
    cocoop,
    coop,
    independentVL,
    linear_probe,
    maple,
    promptkd,
    promptsrc,
    tip_adapter,
    vpt,
)
from . import zsclip as zsclip  # has nothing to configure

__all__ = ["extend_cfg"]

_WITH_NODE = (
    *(capt, coop, cocoop, maple, independentVL, vpt, promptsrc, promptkd),
    *(linear_probe, clip_adapter, tip_adapter),
)


def extend_cfg(cfg: CfgNode) -> None:
    """Add every trainer's node under TRAINER, and the choice of classes that the data sets read."""
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new: the first or second half of the classes
    for module in _WITH_NODE:
        module.extend_cfg(cfg)
