"""The run's data set seen whole: all of its classes, all of its images, and which of them may choose the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import build_dataset
from yacs.config import CfgNode

__all__ = ["all_classnames", "check_selection", "rebuilt_dataset"]


def rebuilt_dataset(cfg: CfgNode, **dataset_keys: Any) -> Any:
    """The run's data set under other DATASET keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in dataset_keys.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


def all_classnames(cfg: CfgNode, classnames: Sequence[str]) -> list[str]:
    """Names of all classes of the data set, which FuDD's prompt files count by.

    Args:
        cfg: the run's configuration.
        classnames: the run's own, perhaps of one half; returned where the data set has no such file.
    """
    has_fudd = any(
        path.name.lower() == f"{cfg.DATASET.NAME.lower()}_prompt_pairs.json"
        for path in Path(cfg.TRAINER.CAPT.SEM.PROMPTS).glob("*.json")
    )
    if not has_fudd or cfg.DATASET.SUBSAMPLE_CLASSES == "all":
        return list(classnames)
    return list(rebuilt_dataset(cfg, SUBSAMPLE_CLASSES="all").classnames)


def check_selection(cfg: CfgNode, dataset: Any) -> None:
    """Refuse to choose the best epoch on test images, which Dassl would take where there are no others.

    Raises:
        ValueError: the data set has no validation images, or they are test images too.
    """
    val, test = ({item.impath for item in part or []} for part in (dataset.val, dataset.test))
    if not val or val & test:
        raise ValueError(
            "TEST.FINAL_MODEL best_val needs validation images apart from the test images, "
            f"{cfg.DATASET.NAME} has none; set TEST.FINAL_MODEL last_step"
        )
