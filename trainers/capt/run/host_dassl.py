"""What differs between the versions of Dassl that hosts bring, 0.4.3 to 0.6.3 and their own changed copies.

Every call from the plugin into Dassl is listed, and held against each version, in ``tests/compat/test_dassl_calls.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import write_atomically

__all__ = ["image_index", "run_through", "save_what_is_trained", "taken_by"]


def taken_by(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the named ``arguments`` that ``function`` takes; Dassl 0.5.0 saves without ``val_result``, say."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in arguments.items() if name in names}


def image_index(batch: Mapping[str, Any], place: Mapping[str, int]) -> Tensor:
    """Places ``(B,)`` int64 of a batch's images among the run's; Dassl's batches name them since 0.6.3.

    Args:
        batch: of Dassl's loader.
        place: path of an image -> its place.
    """
    if "index" in batch:
        return torch.as_tensor(batch["index"])
    return torch.tensor([place[path] for path in batch["impath"]])


def run_through(trainer: Any) -> None:
    """Train one of the host's trainers, and come back: where ``train`` ends the whole process, by its hooks instead."""
    defined = [vars(cls)["train"] for cls in type(trainer).__mro__ if "train" in vars(cls)]
    if not any("_exit" in train.__code__.co_names for train in defined):
        trainer.train()
        return
    trainer.before_train()
    for epoch in range(trainer.start_epoch, trainer.max_epoch):
        trainer.epoch = epoch
        trainer.before_epoch()
        trainer.run_epoch()
        trainer.after_epoch()
    trainer.after_train()


def save_what_is_trained(trainer: Any, name: str) -> str | None:
    """The weights of the model registered as ``name``, where the epoch that failed to end has left none.

    Args:
        trainer: in the epoch ``trainer.epoch``.
        name: folder of the model's checkpoints.

    Returns:
        The file that was written; None where the epoch's checkpoint is there.
    """
    folder, done = Path(trainer.output_dir) / name, trainer.epoch + 1
    path = folder / f"model.pth.tar-{done}"
    if path.is_file():
        return None
    optim, sched = trainer._optims[name], trainer._scheds[name]
    state = {
        "state_dict": trainer._models[name].state_dict(),
        "epoch": done,
        "optimizer": optim.state_dict() if optim else None,
        "scheduler": sched.state_dict() if sched else None,
        "val_result": None,
    }
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    write_atomically(folder / "checkpoint", lambda temporary: Path(temporary).write_text(path.name + "\n"))
    return str(path)
