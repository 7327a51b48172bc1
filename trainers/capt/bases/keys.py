"""Which weights a checkpoint may hold: one that a learner does not use means another method, and another model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .base_model import BaseSpec

__all__ = ["CLIP", "WORDS", "check_keys"]

WORDS = r"(prompt_learner\.)?(token_(prefix|suffix|midfix|middle\d|embedding)|tokenized_prompts)"  # of the old classes
CLIP = r"(image_encoder|text_encoder)\.(?!.*(VPT|proj_rep)).*|logit_scale|dtype"  # frozen, and the run's own is used


def check_keys(state: Iterable[str], path: str, spec: BaseSpec, *known: str) -> None:
    """Refuse a checkpoint with weights that the learner would leave aside.

    Args:
        state: the checkpoint's names.
        path: of the checkpoint.
        spec: the learner.
        known: patterns of the names that the learner reads, or knows to be of no use.

    Raises:
        ValueError: names what nobody would use.
    """
    pattern = re.compile("|".join(f"(?:{one})" for one in known))
    others = sorted(key for key in state if not pattern.fullmatch(key))
    if others:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        raise ValueError(
            f'"{path}" holds {others[:4]}{more}, which {spec.name} does not use; set TRAINER.CAPT.BASE.NAME to the '
            "method that wrote it"
        )
