"""One process of ``steps.py``: builds one trainer and makes a step whenever it is told to.

    python benchmarks/step_worker.py '{"side": "ours", "name": "CoOp", "clip": "clip.pt", ...}'

A line on its input is a request, ``{"way": "step", "batch": 4}``; the answer is a line of JSON on its output. What
trainers print goes to the other stream. The original repositories run here with their own code on our torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "peers"))

import drawn  # noqa: E402
import numpy as np  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

Step = Callable[[str, int], Any]


def batch_of(size: int, num_classes: int, device: str) -> dict[str, torch.Tensor]:
    """Random images ``(B, 3, H, W)`` and labels ``(B,)``, the same in every process."""
    source = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, tiny.SIDE, tiny.SIDE, generator=source)
    return {"img": images.to(device), "label": torch.randint(num_classes, (size,), generator=source).to(device)}


class Meter:
    """What one call takes: seconds, seconds of CPU, and memory at its peak."""

    def __init__(self, device: str):
        self.is_cuda = device != "cpu"
        self.start = self._memory("VmRSS")

    def _memory(self, key: str) -> float:
        """MB on the GPU, or VmRSS or VmHWM of this process."""
        if self.is_cuda:
            return float(torch.cuda.max_memory_allocated()) / 2**20
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

    def measure(self, call: Callable[[], object]) -> dict[str, float]:
        """Figures of ``call``; ``mb`` is what the process holds at most, ``mb_above`` above what it held once built."""
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        if self.is_cuda:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = self._memory("VmHWM")
        return {"wall_s": wall, "cpu_s": cpu, "mb": peak, "mb_above": peak - self.start}


def counted(call: Callable[[], object]) -> int:
    """Floating-point operations of the products in ``call``, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def matmul_rate(device: str) -> float:
    """Floating-point operations a second of a large product, of CPU time on a CPU; the best of eight."""
    rows, inner, columns = (4096, 768, 3072)
    left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    meter = Meter(device)
    key = "cpu_s" if device == "cpu" else "wall_s"
    return 2 * rows * inner * columns / min(meter.measure(lambda: left @ right)[key] for _ in range(8))


# ---------------------------------------------------------------------------------------------------------- trainers


def prompt_learner(about: dict[str, Any], device: str) -> tuple[Any, Step]:
    """One of the prompt learners, ours or an original's, on random numbers."""
    trainer = (_original if about["side"] == "original" else _ours)(about, device)
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
    tiny.set_prompts(trainer.model)
    batches: dict[int, dict[str, torch.Tensor]] = {}

    def step(way: str, size: int) -> object:
        batch = batches.setdefault(size, batch_of(size, about["classes"], device))
        if way == "step":
            return trainer.forward_backward(batch)
        with torch.no_grad():
            return trainer.model_inference(batch["img"])

    return trainer, step


def _options(device: str) -> list[Any]:
    return ["USE_CUDA", device != "cpu"]


def _ours(about: dict[str, Any], device: str) -> Any:
    import compat  # noqa: F401

    if about["name"] == "PromptSRC":
        from trainers import promptsrc
        from trainers.imagenet_templates import IMAGENET_TEMPLATES

        # What the frozen CLIP makes of texts is encoded once a run, so that fewer templates change no step.
        vars(promptsrc)["IMAGENET_TEMPLATES"] = IMAGENET_TEMPLATES[:1]
    names = drawn.class_names(about["classes"])
    return tiny.make_trainer(about["name"], about["clip"], about["keys"], "fp32", names, _options(device))


def _original(about: dict[str, Any], device: str) -> Any:
    import run_original

    repository, module = next(
        (repository, modules[about["name"]])
        for repository, modules in run_original.REPOSITORIES.items()
        if about["name"] in modules
    )
    folder = run_original._prepare(about["peers"], repository, about["clip"], device)
    from dassl.config import get_cfg_default

    loaded = run_original._import_trainer(folder, module)
    if about["name"] == "PromptSRC":
        loaded.IMAGENET_TEMPLATES = loaded.IMAGENET_TEMPLATES[:1]
    cfg = get_cfg_default()
    run_original._extend_cfg(cfg, folder)
    tiny.configure(cfg, about["name"], about["clip"], about["keys"], options=_options(device))
    trainer_class = tiny.without_data(getattr(loaded, about["name"]), drawn.class_names(about["classes"]))
    return trainer_class(cfg)


def first_step(trainer: Any, size: int, num_classes: int, device: str) -> dict[str, np.ndarray]:
    """Logits of a batch, and the gradients of a first step, by name."""
    batch = batch_of(size, num_classes, device)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = trainer.model_inference(batch["img"]).float().cpu().numpy()
    trainer.set_model_mode("train")
    trainer.forward_backward(batch)
    return {"logits": logits, **{name: p.grad.float().cpu().numpy() for name, p in tiny.trained(trainer.model).items()}}


# ------------------------------------------------------------------------------------------------------------ talking


def main(argv: list[str]) -> int:
    """Build, say so, answer until the input ends."""
    about = json.loads(argv[0])
    out, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    device = about["device"]
    torch.set_num_threads(about["threads"])
    drawn.take_sizes(about["sizes"])
    if about["side"] == "capt":
        from step_of_capt import capt

        trainer, step = capt(about, device)
    else:
        trainer, step = prompt_learner(about, device)
    meter = Meter(device)

    def answer(found: object) -> None:
        print(json.dumps(found), file=out, flush=True)

    answer({"rate": matmul_rate(device), "start_mb": meter.start})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["way"] == "compare":
            np.savez(asked["path"], allow_pickle=False, **first_step(trainer, asked["batch"], about["classes"], device))
            answer({})
            continue
        way = asked.get("of", asked["way"])
        trainer.set_model_mode("train" if "step" in way else "eval")
        call = partial(step, way, asked["batch"])
        answer({"flops": counted(call)} if asked["way"] == "count" else meter.measure(call))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
