"""Runs on what is drawn: a CLIP of random weights in given sizes, a folder of noise, and a configuration of CAPT."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "trainers"), str(ROOT)]

import compat  # noqa: E402, F401 - makes `import dassl` work

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

__all__ = ["SIZES", "class_names", "configuration", "draw", "machine", "store_clip", "take_sizes"]

# Of a CLIP: text width, visual width, joint width, blocks a tower, side of an image, side of a patch.
SIZES = {"tiny": (64, 128, 64, 3, 32, 16), "vit_b16": (512, 768, 512, 12, 224, 16)}


def take_sizes(name: str) -> None:
    """From here on the tests' small CLIP, its images and its trainers have these sizes."""
    tiny.TEXT_WIDTH, tiny.VISUAL_WIDTH, tiny.EMBED_DIM, tiny.NUM_BLOCKS, tiny.SIDE, tiny.PATCH = SIZES[name]


def store_clip(path: Path) -> Path:
    """Write random weights of the sizes in use; numbers are of half precision, in which OpenAI's are kept."""
    state = tiny.clip_state(num_blocks=tiny.NUM_BLOCKS)
    torch.save({name: value.half() if value.dim() > 1 else value for name, value in state.items()}, path)
    return path


def class_names(number: int) -> list[str]:
    """Names of two or three tokens."""
    first = ["red", "old", "small", "wild", "paper"]
    second = ["apple", "bridge", "candle", "desert", "engine", "forest", "guitar", "harbor"]
    pairs = [f"{one} {other}" for one in first for other in second]
    return [pairs[i % len(pairs)] + (f" {i // len(pairs)}" if i >= len(pairs) else "") for i in range(number)]


def draw(folder: Path, names: list[str], num_train: int = 2, num_test: int = 1) -> None:
    """Pictures of noise around one colour a class, ``num_train`` and ``num_test`` a class."""

    def draw_class(named: tuple[int, str]) -> None:
        number, name = named
        source = np.random.default_rng(number)
        colour = source.integers(40, 216, 3)
        for part, number in (("train", num_train), ("test", num_test)):
            place = folder / part / name.replace(" ", "_").replace("/", "_")
            place.mkdir(parents=True)
            for i in range(number):
                pixels = colour + source.integers(-40, 40, (tiny.SIDE, tiny.SIDE, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.jpg", quality=95)

    with ThreadPoolExecutor() as pool:
        list(pool.map(draw_class, enumerate(names)))


def configuration(folder: Path, clip: Path, device: str, options: dict[str, Any]) -> Any:
    """CAPT at its defaults on zero-shot CLIP and the pictures in ``folder / "images"``, in fp32, without workers."""
    from dassl.config import get_cfg_default

    import datasets  # noqa: F401  (it registers the data sets)
    import trainers

    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/trainers/CAPT/vit_b16_ep20.yaml"))
    own: dict[str, Any] = {"DATASET.NAME": "Folder", "DATASET.ROOT": str(folder / "images")}
    own |= {"OUTPUT_DIR": str(folder / "run")}
    own |= {"MODEL.BACKBONE.NAME": str(clip), "INPUT.SIZE": (tiny.SIDE, tiny.SIDE), "TRAINER.NAME": "CAPT"}
    own |= {"SEED": 1, "USE_CUDA": device != "cpu", "VERBOSE": False, "TRAINER.CAPT.PREC": "fp32"}
    own |= {"OPTIM.MAX_EPOCH": 1, "DATALOADER.NUM_WORKERS": 0, **options}
    cfg.merge_from_list([word for pair in own.items() for word in pair])
    return cfg


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    about = {"cpu": model, "cores": os.cpu_count(), "torch": torch.__version__, "device": device}
    return about if device == "cpu" else {**about, "gpu": torch.cuda.get_device_name()}
