"""What is trained, read from a run's checkpoint: of this code's format, and made on this base model."""

from __future__ import annotations

from torch import Tensor

from ..bases.base_model import BaseModel
from ..run.files import read_checkpoint
from .model import FORMAT, CAPTModel

__all__ = ["check_base", "load_refiner"]


def load_refiner(model: CAPTModel, path: str, *, is_none: str = "", other_base: str) -> int | None:
    """Load what was trained into ``model``; returns the checkpoint's epoch.

    Args:
        model: on the base model that the checkpoint was trained on.
        path: the checkpoint.
        is_none: what to do where it is no checkpoint of CAPT.
        other_base: what to do where it was trained on another base model.

    Raises:
        ValueError: it is no checkpoint of CAPT, of a newer format, or belongs to another base model or other switches.
    """
    checkpoint = read_checkpoint(path)
    state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
    if not {"base_digest", "format"} <= state.keys():
        raise ValueError(f'"{path}" is no checkpoint of CAPT{is_none}')
    if int(state["format"]) > FORMAT:
        raise ValueError(f'"{path}" has format {int(state["format"])}, this code reads up to {FORMAT}; update it')
    check_base(state["base_digest"], model.base, path, other_base)
    try:
        model.refiner.load_state_dict(state)
    except RuntimeError as error:
        details = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        if model.refiner.expert.mixture is None and any(key.startswith("expert.mixture") for key in state):
            details = "it holds experts: give MGDE.BETA 0.1, the default once, or what it was trained with"
        raise ValueError(
            f'"{path}" was trained with other TRAINER.CAPT switches or sizes than this run ({details})'
        ) from error
    return checkpoint.get("epoch")


def check_base(digest: Tensor, base: BaseModel, path: str, fix: str) -> None:
    """Refuse what was trained on another base model.

    Args:
        digest: ``(32,)`` uint8, that of the base model that it was trained on.
        base: the one that is here.
        path: what was trained.
        fix: what to do.

    Raises:
        ValueError: the two differ.
    """
    stored, own = bytes(digest.tolist()).hex(), base.digest()
    if stored != own:
        raise ValueError(f'"{path}" was trained on another base model ({stored[:12]}, this one is {own[:12]}); {fix}')
