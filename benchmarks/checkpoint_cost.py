"""What a state behind every epoch costs: a MaPLe run at the size of ViT-B/16, and one of CAPT's refiner of that size.

    python benchmarks/checkpoint_cost.py --out FOLDER_ON_YOUR_DISK

Random weights, noise for images: times depend on sizes alone. A state is timed as it is in a run, which waits until the
file is in its place and not until the disk has it; optimisers have taken a step before, so that they have a momentum.
An epoch has the steps of half of Caltech101. CAPT's experts are on (MGDE.BETA), as there is nothing to train without.

Prints a table: median, least and CPU seconds of a state, and the bytes. On a machine that others use the least is the
nearest to what an idle one takes, and the CPU seconds are what the run itself gives for it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "trainers"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import tiny
import torch
from dassl.config import get_cfg_default
from dassl.engine import TrainerX

import trainers
from trainers.capt import CAPT
from trainers.capt.run.interruption import Progress, ResumableMixin
from trainers.capt.run.states import StateWriter, rng_state, states_in
from trainers.maple import MaPLe

ROOT = Path(__file__).resolve().parents[1]
EPOCH = 16 * 50 // 4  # steps of an epoch: 16 shots of 50 classes in batches of 4, half of Caltech101
Trainer = TypeVar("Trainer", bound=TrainerX)


def vit_b16() -> dict[str, torch.Tensor]:
    """A state dict in the layout and the sizes of OpenAI's ViT-B/16."""
    state = {
        "visual.class_embedding": torch.randn(768),
        "visual.positional_embedding": torch.randn(197, 768),
        "visual.proj": torch.randn(768, 512),
        "visual.conv1.weight": torch.randn(768, 3, 16, 16) * 0.02,
        "text_projection": torch.randn(512, 512),
        "positional_embedding": torch.randn(77, 512),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.randn(49408, 512) * 0.02,
    }
    towers = {"visual.transformer": 768, "transformer": 512}
    norms = {"visual.ln_pre": 768, "visual.ln_post": 768, "ln_final": 512}
    for tower, width in towers.items():
        for block in range(12):
            name = f"{tower}.resblocks.{block}"
            norms |= {f"{name}.ln_1": width, f"{name}.ln_2": width}
            shapes = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width)}
            shapes |= {"mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)}
            for layer, (rows, columns) in shapes.items():
                state[f"{name}.{layer}weight"] = torch.randn(rows, columns) * 0.02
                state[f"{name}.{layer}bias"] = torch.zeros(rows)
    for name, width in norms.items():
        state |= {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
    return state


def trainer_of(kind: type[Trainer], yaml: str, clip: Path, out: Path, num_classes: int, *more: object) -> Trainer:
    """A trainer that knows its classes and has no data set."""
    name = kind.__name__
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/trainers" / yaml))
    cfg.merge_from_list(["TRAINER.NAME", name, "MODEL.BACKBONE.NAME", str(clip), "OUTPUT_DIR", str(out), "SEED", 1])
    cfg.merge_from_list(["USE_CUDA", torch.cuda.is_available(), f"TRAINER.{name.upper()}.PREC", "fp32", *more])
    cfg.freeze()
    trainer: Trainer = tiny.without_data(kind, [f"class {i}" for i in range(num_classes)])(cfg)
    return trainer


class Cost(NamedTuple):
    """What a state takes: seconds by the clock, the median and the least; CPU seconds of all threads; bytes."""

    median: float
    least: float
    cpu: float
    size: int


def state_cost(trainer: ResumableMixin, repeats: int, pause: float) -> Cost:
    """Write states as a run does behind its epochs, which last ``pause`` seconds here."""
    seconds, cpu = [], []
    with StateWriter(trainer.output_dir, keep=2) as trainer._state_writer:
        for epoch in range(repeats):
            time.sleep(pause)
            start, start_cpu = time.perf_counter(), time.process_time()
            trainer._progress = Progress(epoch, rng_state(), 0.0, is_stored=False)
            trainer._store_progress()
            seconds.append(time.perf_counter() - start)
            trainer._state_writer.settle()
            cpu.append(time.process_time() - start_cpu)
    size = states_in(trainer.output_dir)[0][1].stat().st_size
    return Cost(statistics.median(seconds), min(seconds), statistics.median(cpu), size)


def step_seconds(trainer: MaPLe, steps: int, size: int) -> float:
    """Median seconds of a step on noise."""
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 10**6, 0
    trainer.set_model_mode("train")
    seconds = []
    for _ in range(steps):
        images = torch.randn(size, 3, 224, 224)
        start = time.perf_counter()
        float(trainer.forward_backward({"img": images, "label": torch.arange(size)})["loss"])
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder on the disk that is to be measured (a temporary one)")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=25, help="states that are written")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two of them")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        clip = Path(folder) / "clip.pt"
        torch.save(vit_b16(), clip)
        maple_yaml = "MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
        maple = trainer_of(MaPLe, maple_yaml, clip, Path(folder) / "maple", args.classes)
        epoch = EPOCH * step_seconds(maple, args.steps, 4)
        costs = {"MaPLe": state_cost(maple, args.repeats, args.pause)}
        del maple
        experts = ("TRAINER.CAPT.MGDE.BETA", 0.1)
        capt = trainer_of(CAPT, "CAPT/vit_b16_ep20.yaml", clip, Path(folder) / "capt", args.classes, *experts)
        capt.num_met_ahead = len(capt.pairs)  # with a cache, no step meets a pair of classes for the first time
        capt.before_epoch()  # the figures of an epoch, which a state holds
        for parameter in capt.model.refiner.parameters():
            parameter.grad = torch.randn_like(parameter)
        assert capt.optim is not None, "its experts are trained"
        capt.optim.step()
        costs["CAPT"] = state_cost(capt, args.repeats, args.pause)
    print(f"An epoch of MaPLe, {EPOCH} steps: {epoch:.1f} s, of which a state is {costs['MaPLe'].median / epoch:.3%}")
    print("| a state of | median s | least s | CPU s | MB |\n|---|--:|--:|--:|--:|")
    for name, cost in costs.items():
        print(f"| {name} | {cost.median:.3f} | {cost.least:.3f} | {cost.cpu:.3f} | {cost.size / 1e6:.1f} |")


if __name__ == "__main__":
    main()
