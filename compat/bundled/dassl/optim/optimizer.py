"""Optimisers from the OPTIM node."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn
from yacs.config import CfgNode

__all__ = ["build_optimizer"]

Groups = list[dict[str, Any]]

OPTIMIZERS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(
    model: nn.Module | Iterable[nn.Parameter], optim_cfg: CfgNode, param_groups: Groups | None = None
) -> torch.optim.Optimizer:
    """Build the optimiser ``optim_cfg.NAME``.

    Every parameter is passed, frozen ones too: they have no gradient, so the step skips them.

    Args:
        model: Module, or iterable of parameters.
        optim_cfg: The OPTIM node.
        param_groups: Parameter groups to use instead of the model's parameters.

    Raises:
        ValueError: Unknown name.
        TypeError: STAGED_LR with something that is not a module.
    """
    if optim_cfg.NAME not in OPTIMIZERS:
        raise ValueError(f"optim must be one of {OPTIMIZERS}, but got {optim_cfg.NAME}")
    if param_groups is None:
        params = _staged_groups(model, optim_cfg) if optim_cfg.STAGED_LR else _all_parameters(model)
        return _construct(params, optim_cfg)
    if optim_cfg.STAGED_LR:
        warnings.warn("OPTIM.STAGED_LR has no effect on parameter groups that are given as such", stacklevel=2)
    return _construct(param_groups, optim_cfg)


def _all_parameters(model: nn.Module | Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
    return model.parameters() if isinstance(model, nn.Module) else model


def _staged_groups(model: nn.Module | Iterable[nn.Parameter], optim_cfg: CfgNode) -> Groups:
    """Two groups: pretrained children at LR * BASE_LR_MULT, those named in NEW_LAYERS at LR."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"OPTIM.STAGED_LR needs an nn.Module, got {type(model).__name__}")
    module = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = optim_cfg.NEW_LAYERS
    if isinstance(new_layers, str):
        new_layers = [new_layers]
    if not new_layers:
        warnings.warn("OPTIM.NEW_LAYERS is empty, so OPTIM.STAGED_LR only lowers the rate of every layer", stacklevel=3)
    base: list[nn.Parameter] = []
    new: list[nn.Parameter] = []
    for name, child in module.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]


def _construct(params: Iterable[nn.Parameter] | Groups, optim_cfg: CfgNode) -> torch.optim.Optimizer:
    name = optim_cfg.NAME
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    if name == "sgd":
        return torch.optim.SGD(
            params,
            **common,
            momentum=optim_cfg.MOMENTUM,
            dampening=optim_cfg.SGD_DAMPNING,
            nesterov=optim_cfg.SGD_NESTEROV,
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(params, **common, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA)
    if name == "radam":
        # The original RAdam decays weights apart from the gradient, as AdamW does.
        return torch.optim.RAdam(params, **common, betas=betas, decoupled_weight_decay=True)
    if name == "adamw":
        return torch.optim.AdamW(params, **common, betas=betas)
    return torch.optim.Adam(params, **common, betas=betas, amsgrad=name == "amsgrad")
