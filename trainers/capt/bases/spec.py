"""Which base learner a configuration names."""

from __future__ import annotations

import os
from typing import Any

from yacs.config import CfgNode

from .base_model import BaseSpec
from .templates import template_of

__all__ = ["spec_from"]


def spec_from(node: CfgNode, dataset: str, config: CfgNode | None = None) -> BaseSpec:
    """The base learner of a ``TRAINER.CAPT.BASE`` node; those of older runs lack the last keys.

    Args:
        node: the node.
        dataset: ``DATASET.NAME``, which the template and the teacher's folder follow where the node names none.
        config: all of the configuration, for learners that look into it.
    """
    later: dict[str, Any] = {"options": dict(node.get("OPTIONS", {})), "dataset": dataset, "config": config}
    if "CTX_INIT" in node:
        later["context_words"] = node.CTX_INIT
    if "TEACHER_DIR" in node:
        later["teacher_directory"] = node.TEACHER_DIR or os.path.join("teacher_model", dataset)
        later["teacher_backbone"] = node.TEACHER_NAME
    template = node.TEMPLATE or template_of(dataset)
    return BaseSpec(node.NAME, node.DIR, node.EPOCH, template, node.CLASS_TOKEN_POSITION, **later)
