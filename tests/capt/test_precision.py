"""Which tensors of a CLIP are cast, and what runs where a precision cannot be had."""

import contextlib

import pytest
import tiny_capt
import torch

from trainers.capt.backbone.precision import PRECISIONS, autocast_for, cast_clip, grad_scaler_for, usable_precision
from trainers.capt.backbone.stock_clip import build_clip

CPU = torch.device("cpu")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "amp": torch.float32}


@pytest.fixture(params=PRECISIONS)
def cast(request):
    return request.param, cast_clip(build_clip(tiny_capt.clip_state()), request.param)


def test_matrices_and_convolutions_are_cast(cast):
    precision, model = cast
    block = model.visual.transformer.resblocks[0]
    for tensor in (
        *(model.visual.conv1.weight, model.visual.proj, model.text_projection),
        *(block.mlp.c_fc.weight, block.mlp.c_fc.bias, block.attn.in_proj_weight, block.attn.in_proj_bias),
        *(block.attn.out_proj.weight, block.attn.out_proj.bias),
    ):
        assert tensor.dtype == DTYPES[precision]


def test_norms_and_embeddings_stay(cast):
    _, model = cast
    for tensor in (
        *(model.visual.ln_pre.weight, model.ln_final.bias, model.visual.class_embedding),
        *(model.token_embedding.weight, model.positional_embedding, model.logit_scale),
    ):
        assert tensor.dtype == torch.float32


def test_parameters_stay_the_same_objects():
    """An optimiser or a hook that holds one of them goes on holding it."""
    model = build_clip(tiny_capt.clip_state())
    before = dict(model.named_parameters())
    cast_clip(model, "fp16")
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_values_are_rounded_once():
    model = build_clip(tiny_capt.clip_state())
    before = model.visual.proj.detach().clone()
    assert torch.equal(cast_clip(model, "fp16").visual.proj, before.half())


@pytest.mark.parametrize("precision", ["fp16", "amp"])
def test_what_needs_a_gpu_says_so_on_a_cpu(precision, capsys):
    assert usable_precision(precision, CPU) == "fp32"
    assert capsys.readouterr().out == f"PREC {precision} needs a GPU; running in fp32 on the CPU\n"


@pytest.mark.parametrize(
    ("precision", "device"),
    [("fp32", CPU), ("bf16", CPU), *((precision, torch.device("cuda")) for precision in PRECISIONS)],
)
def test_what_works_is_silent(precision, device, capsys):
    assert usable_precision(precision, device) == precision
    assert capsys.readouterr().out == ""


def test_mixed_precision_is_amps_alone():
    assert isinstance(autocast_for("amp", CPU), torch.autocast)
    for precision in ("fp16", "bf16", "fp32"):
        assert isinstance(autocast_for(precision, CPU), contextlib.nullcontext)
        assert grad_scaler_for(precision) is None
