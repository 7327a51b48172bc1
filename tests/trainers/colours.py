"""A data set of a dozen pictures, and trainers on it that run through Dassl's own loop."""

from pathlib import Path

import numpy as np
import tiny
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from PIL import Image

import trainers

NAMES = ["red", "green", "blue"]


class Colours(DatasetBase):
    """Four noisy pictures of each of three colours."""

    def __init__(self, cfg):
        source = np.random.RandomState(0)
        items = {"train": [], "test": []}
        for split, label, number in [(s, c, i) for s in items for c in range(3) for i in range(4)]:
            path = f"{cfg.DATASET.ROOT}/{split}_{label}_{number}.png"
            pixels = source.randint(0, 100, (tiny.SIDE, tiny.SIDE, 3))
            pixels[..., label] += 150
            if not Path(path).exists():  # a later run sees the same files, not new ones
                Image.fromarray(pixels.astype(np.uint8)).save(path)
            items[split].append(Datum(impath=path, label=label, classname=NAMES[label]))
        super().__init__(train_x=items["train"], val=items["test"], test=items["test"])


if "Colours" not in DATASET_REGISTRY.registered_names():
    DATASET_REGISTRY.register(Colours)


def build(folder, clip_path, name, keys=None, options=()):
    """A trainer by the name of ``name``: three epochs of three steps, in ``<folder>/out``."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    tiny.configure(cfg, name, clip_path, keys)
    cfg.merge_from_list(["DATASET.NAME", "Colours", "DATASET.ROOT", str(folder), "SEED", 1])
    cfg.merge_from_list(["OUTPUT_DIR", str(folder / "out"), "DATALOADER.NUM_WORKERS", 0, "OPTIM.LR", 0.2])
    cfg.merge_from_list(["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "INPUT.TRANSFORMS", ("normalize",), *options])
    cfg.freeze()
    set_random_seed(1)
    return build_trainer(cfg)
