"""Nothing stays on the CPU and nothing waits for the GPU, shown without one: torch's fake tensors say so.

A tensor on the wrong device, ``.item()`` or a branch on a tensor's value raises under the mode.
"""

import pytest
import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainers.capt.run.feature_cache import ViewBatch

LEARNERS = ["CoOp", "CoCoOp", "MaPLe", "IVLP", "VPT", "PromptSRC"]
CASES = [(name, {}) for name in LEARNERS] + [("CoOp", {"CLASS_TOKEN_POSITION": "middle", "CSC": True})]


def _on_fake_gpu(module):
    """Replace every parameter and buffer by a fake one on a GPU; shared ones stay shared."""
    fakes = {}

    def fake(value):
        if value is not None and id(value) not in fakes:
            empty = torch.empty(value.shape, dtype=value.dtype, device="cuda:0")
            is_parameter = isinstance(value, torch.nn.Parameter)
            fakes[id(value)] = torch.nn.Parameter(empty, value.requires_grad) if is_parameter else empty
        return fakes.get(id(value))

    for part in module.modules():
        for table in (part._parameters, part._buffers):
            table.update({name: fake(value) for name, value in table.items()})


@pytest.mark.parametrize(("name", "keys"), CASES)
def test_forward_stays_on_the_gpu(name, keys, make_trainer):
    model = make_trainer(name, keys).model
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_gpu(model)
        images = torch.empty(5, 3, tiny.SIDE, tiny.SIDE, device="cuda:0")
        logits = model(images)
        assert (logits.device.type, logits.dtype, tuple(logits.shape)) == ("cuda", torch.float32, (5, 4))
        if name == "PromptSRC":
            assert model.encode_images_frozen(images).device.type == "cuda"


def test_causal_masks_are_taken_along_once(make_trainer):
    """They are no buffers; a block would copy its own to the GPU in every pass."""
    model = make_trainer("CoOp").model
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_gpu(model)
        model.encode_texts()
        masks = [block.attn_mask for block in model.text_encoder.transformer.resblocks]
        assert {(mask.device.type, tuple(mask.shape)) for mask in masks} == {("cuda", (77, 77))}
        model.encode_texts()
        assert all(
            block.attn_mask is mask for block, mask in zip(model.text_encoder.transformer.resblocks, masks, strict=True)
        )


@pytest.mark.parametrize("name", ["CoOp", "PromptSRC"])
def test_losses_stay_on_the_gpu(name, make_trainer):
    trainer = make_trainer(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_gpu(trainer.model)
        images = torch.empty(5, 3, tiny.SIDE, tiny.SIDE, device="cuda:0")
        trainer.teacher_texts = torch.empty(4, tiny.EMBED_DIM, device="cuda:0")
        loss, figures = trainer.compute_loss(images, torch.zeros(5, dtype=torch.long, device="cuda:0"))
        assert loss.device.type == "cuda"
        assert all(value.device.type == "cuda" for value in figures.values())


def test_a_tensor_on_the_cpu_would_be_noticed(make_trainer):
    model = make_trainer("CoOp").model
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_gpu(model)
        model.prompt_learner.token_prefix = torch.empty(4, 1, tiny.TEXT_WIDTH)
        with pytest.raises(RuntimeError, match="device"):
            model(torch.empty(5, 3, tiny.SIDE, tiny.SIDE, device="cuda:0"))


class _Copied:
    """Stands for a tensor, and notes whether its copy to the device of the key waits."""

    def __init__(self):
        self.waits = {}

    def to(self, device, non_blocking=False):
        self.waits[device.type] = not non_blocking
        return self


def test_what_comes_from_a_gpu_is_waited_for():
    """Torch copies into pinned memory then, and whoever reads at once would read what was there before."""
    values = [_Copied() for _ in range(5)]
    batch = ViewBatch(values[0], None, *values[1:])
    batch.to(torch.device("cpu")).to(torch.device("cuda"))
    assert all(value.waits == {"cpu": True, "cuda": False} for value in values)
