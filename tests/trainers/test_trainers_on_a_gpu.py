"""Every trainer on a real CUDA device, by the numbers of the CPU: `pytest -m gpu`."""

import json

import colours
import numpy as np
import pytest
import tiny
import torch
from stopping import METHODS, stop_in, stopped

from trainers.capt.run.files import read_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
ON_GPU = ["USE_CUDA", True]
ADAPTERS = [name for name, keys in METHODS.items() if keys is None]


def about_to_step(trainer):
    """Not at a batch behind which Dassl prints."""
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
    tiny.set_prompts(trainer.model)
    trainer.set_model_mode("train")
    return trainer


def steps(trainer, number=3):
    """Losses of some steps, the first one's gradients, and logits behind them, on the CPU."""
    about_to_step(trainer)
    data, losses, grads = tiny.batch(), [], {}
    for step in range(number):
        losses.append(float(trainer.forward_backward(data)["loss"]))
        if step == 0:
            grads = {name: p.grad.float().cpu() for name, p in tiny.trained(trainer.model).items()}
    trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = trainer.model_inference(data["img"].to(trainer.device)).float().cpu()
    return losses, grads, logits


@pytest.mark.parametrize("case", tiny.CASES)
def test_steps_are_those_of_the_cpu(case, make_trainer):
    name, keys = tiny.CASES[case]
    losses, grads, logits = steps(make_trainer(name, keys))
    on_gpu = steps(make_trainer(name, keys, options=ON_GPU))
    np.testing.assert_allclose(on_gpu[0], losses, rtol=2e-3)  # cudnn convolves in TF32, as torch has it
    largest = max(float(grad.abs().max()) for grad in grads.values())  # in front of a batch norm a bias has none
    for key, grad in grads.items():
        torch.testing.assert_close(on_gpu[1][key], grad, rtol=1e-2, atol=2e-3 * largest, msg=key)
    torch.testing.assert_close(on_gpu[2], logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "amp"])
@pytest.mark.parametrize("case", tiny.CASES)
def test_steps_of_half_precision_are_finite(case, precision, make_trainer):
    name, keys = tiny.CASES[case]
    losses, grads, logits = steps(make_trainer(name, keys, precision=precision, options=ON_GPU))
    assert np.isfinite(losses).all()
    is_scaled = precision == "amp"  # its first steps find the scale: their gradients are infinite, and not used
    assert is_scaled or all(torch.isfinite(grad).all() for grad in grads.values())
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("case", tiny.CASES)
def test_a_step_makes_no_host_sync(case, make_trainer):
    name, keys = tiny.CASES[case]
    trainer = about_to_step(make_trainer(name, keys, options=ON_GPU))
    data = {key: value.pin_memory() for key, value in tiny.batch().items()}
    trainer.forward_backward(data)  # kernels are loaded, what is kept for a run is made
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.forward_backward(data)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(name, build, tmp_path):
    options = [*ON_GPU, "DATALOADER.NUM_WORKERS", 2]
    build(name, "straight", *options).train()
    if name != "TipAdapter":  # which takes no steps
        stopped(stop_in(build(name, "stopped", *options), 1, 1))
    build(name, "stopped", *options).train()
    checkpoints = sorted((tmp_path / "straight/out").rglob("model.pth.tar-3"))
    assert checkpoints
    for path in checkpoints:
        other = tmp_path / "stopped/out" / path.relative_to(tmp_path / "straight/out")
        found, straight = read_checkpoint(other)["state_dict"], read_checkpoint(path)["state_dict"]
        for key, value in straight.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=f"{path.name}: {key}")


def run(tmp_path, clip_path, name, where, keys, *options):
    """A whole run on the pictures; its probabilities of the test images, and its record."""
    folder = tmp_path / where
    folder.mkdir()
    options = ["DATASET.ROOT", str(tmp_path), "TRAINER.CAPT.CACHE.DIR", str(folder), *options]
    trainer = colours.build(folder, clip_path, name, keys, options)
    if name == "ZeroshotCLIP":
        trainer.load_model("")
        trainer.test()
    else:
        if where == "gpu":
            watch(trainer)
        trainer.train()
    with np.load(folder / "out/predictions.npz") as stored:
        return stored["probs"], json.loads((folder / "out/results.json").read_text())


def watch(trainer):
    """From the third epoch on, when all views have been met, no step may wait for the GPU, but to print."""
    step = trainer.forward_backward

    def watched(batch):
        is_quiet = trainer.epoch > 1 and not trainer.is_to_report()
        torch.cuda.set_sync_debug_mode("error" if is_quiet else "default")
        try:
            return step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.forward_backward = watched


@pytest.mark.parametrize("name", [*ADAPTERS, "ZeroshotCLIP"])
def test_an_adapter_gives_the_answers_of_the_cpu(name, tmp_path, clip_path):
    keys = {} if name in METHODS else None
    on_cpu, _ = run(tmp_path, clip_path, name, "cpu", keys)
    on_gpu, _ = run(tmp_path, clip_path, name, "gpu", keys, *ON_GPU, "TRAIN.PRINT_FREQ", 2)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_capt_chooses_and_answers_as_on_the_cpu(beta, tmp_path, clip_path):
    keys = {"MGDE.BETA": beta, "CACHE.VIEWS": 1}
    slow = ["OPTIM.LR", 0.002]
    on_cpu, record = run(tmp_path, clip_path, "CAPT", "cpu", keys, *slow)
    on_gpu, other = run(tmp_path, clip_path, "CAPT", "gpu", keys, *slow, *ON_GPU, "TRAIN.PRINT_FREQ", 2)
    assert other["choices"]["gain"]["gain"] == pytest.approx(record["choices"]["gain"]["gain"])
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=5e-2, atol=5e-3)
