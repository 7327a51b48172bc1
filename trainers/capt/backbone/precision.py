"""The precisions of TRAINER.<NODE>.PREC: fp16, fp32, bf16 and amp.

Whatever the precision, the tensors that are trained stay in fp32 and are cast where they enter the towers: SGD's small
steps vanish in half precision. Checkpoints load either way, since loading casts.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

__all__ = ["PRECISIONS", "autocast_for", "cast_clip", "grad_scaler_for", "usable_precision"]

PRECISIONS = ("fp16", "fp32", "bf16", "amp")
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16, "amp": torch.float32}


def usable_precision(precision: str, device: torch.device) -> str:
    """``precision``, or fp32 (said in one printed line) where the device cannot train in it."""
    if device.type == "cpu" and precision in ("fp16", "amp"):
        print(f"PREC {precision} needs a GPU; running in fp32 on the CPU")
        return "fp32"
    return precision


def cast_clip(clip_model: nn.Module, precision: str) -> nn.Module:
    """Put CLIP's matrices and convolutions into the dtype of ``precision``, in place, as OpenAI does for fp16.

    Layer norms and embeddings stay fp32: CLIP's layer norm computes in fp32, embeddings are cast where they are used.
    """
    dtype = _DTYPES[precision]
    for module in clip_model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.to(dtype)
        elif isinstance(module, nn.MultiheadAttention):
            module.in_proj_weight.data = module.in_proj_weight.data.to(dtype)
            module.in_proj_bias.data = module.in_proj_bias.data.to(dtype)
        for name in ("text_projection", "proj"):
            if isinstance(parameter := getattr(module, name, None), nn.Parameter):
                parameter.data = parameter.data.to(dtype)
    return clip_model


def autocast_for(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for a training step of ``amp``, nothing otherwise."""
    return torch.autocast(device.type, torch.float16) if precision == "amp" else contextlib.nullcontext()


def grad_scaler_for(precision: str) -> torch.amp.GradScaler | None:
    """The loss scaler of ``amp``, None otherwise."""
    if precision != "amp":
        return None
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda")
    return torch.cuda.amp.GradScaler()  # torch 2.2
