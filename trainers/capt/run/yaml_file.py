"""Configuration files as what they say they are: YAML, read and never run.

``CfgNode.merge_from_file`` of yacs executes a file that ends in ``.py``, and takes an empty file for "no changes".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

__all__ = ["merge_yaml"]

SUFFIXES = (".yaml", ".yml")


def merge_yaml(cfg: CfgNode, path: str | os.PathLike[str]) -> None:
    """Merge a YAML file of keys into ``cfg``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has another ending, holds no mapping of keys, or a value has the wrong type.
        KeyError: a key does not exist.
        yaml.YAMLError: it is no YAML.
    """
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f"{path} is no configuration file: its name must end in .yaml or .yml")
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if content is None:
        raise ValueError(f"{path} is empty; a configuration file holds at least one KEY: VALUE")
    if not _is_mapping_of_names(content):
        raise ValueError(f"{path} holds no mapping from names to values; write KEY: VALUE as in configs/")
    cfg.merge_from_other_cfg(CfgNode(content))


def _is_mapping_of_names(value: Any) -> bool:
    """Whether a value is a mapping whose keys, at every depth, are strings."""
    if not isinstance(value, dict):
        return False
    return all(
        isinstance(key, str) and (not isinstance(inner, dict) or _is_mapping_of_names(inner))
        for key, inner in value.items()
    )
