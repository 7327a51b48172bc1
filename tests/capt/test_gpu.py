"""CAPT on a real CUDA device: `pytest -m gpu`."""

import pytest
import tiny_capt
import torch
from torch.nn.functional import normalize

from trainers.capt.backbone.precision import cast_clip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def cuda_model(clip_path, precision):
    base = tiny_capt.make_base(clip_path)
    bank = tiny_capt.make_bank(base)
    cast_clip(base.prompted.clip, precision)
    base.cuda()
    model = tiny_capt.make_model(base).cuda()
    tiny_capt.serve(model, tiny_capt.CLASSES, bank.to("cuda"))
    return model


def features(model, pixels):
    out = model.encode(pixels.cuda())
    return normalize(out.feature.float(), dim=-1), out.cls, out.tokens


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_twenty_steps_are_finite_and_start_with_experts_that_say_nothing(small_clip, precision):
    model = cuda_model(small_clip, precision)
    optimizer = torch.optim.SGD(model.refiner.parameters(), lr=0.01, momentum=0.9)
    batch = features(model, tiny_capt.images(8))
    label = torch.arange(8, device="cuda") % len(tiny_capt.CLASSES)
    model.refiner.expert.gain.fill_(0)
    first = model(*batch, label)
    torch.testing.assert_close(first.logits, first.base_logits, rtol=1e-4, atol=1e-4)
    model.refiner.train()
    for _ in range(20):
        losses = model(*batch, label).losses
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.refiner.parameters())
    assert losses["loss"] < first.losses["loss"]


def test_fp32_logits_equal_those_of_the_cpu(small_clip):
    model = cuda_model(small_clip, "fp32")
    tiny_capt.stir(model.cpu())
    serve = (tiny_capt.CLASSES, model.bank.to("cpu"))
    tiny_capt.serve(model, *serve)
    pixels = tiny_capt.images(8)
    on_cpu = model(*tiny_capt.encode(model.base, pixels)).logits
    model.cuda()
    tiny_capt.serve(model, serve[0], serve[1].to("cuda"))
    on_gpu = model(*features(model, pixels)).logits
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=1e-3)


def test_a_step_makes_no_host_sync(small_clip):
    model = cuda_model(small_clip, "fp32")
    model.refiner.train()
    batch, label = features(model, tiny_capt.images(8)), torch.arange(8, device="cuda") % len(tiny_capt.CLASSES)
    first = model(*batch, label)  # kernels are loaded, pairs are met
    first.losses["loss"].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(*batch, label, mined=first.pairs).losses["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
