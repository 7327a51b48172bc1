"""Prints, as JSON, what a Dassl does in the places where CoOp-style code can tell: run with each Dassl and compare.

Usage: ``python dassl_probe.py <repository root> <folder of a Dassl> <work folder>``; an empty Dassl folder means the
bundled one.
"""

import contextlib
import io
import json
import random
import sys
from pathlib import Path

root, dassl_folder, work = sys.argv[1:4]
if dassl_folder:
    sys.path.insert(0, dassl_folder)
sys.path.insert(0, root)

import compat  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from dassl.config import get_cfg_default  # noqa: E402
from dassl.data.data_manager import build_data_loader  # noqa: E402
from dassl.data.datasets import DatasetBase, Datum  # noqa: E402
from dassl.data.samplers import build_sampler  # noqa: E402
from dassl.data.transforms.transforms import build_transform  # noqa: E402
from dassl.evaluation import build_evaluator  # noqa: E402
from dassl.optim import build_lr_scheduler, build_optimizer  # noqa: E402
from PIL import Image  # noqa: E402

TRANSFORMS = [
    ("normalize",),
    ("random_resized_crop", "random_flip", "normalize"),
    ("random_crop", "random_translation", "cutout", "gaussian_noise", "instance_norm", "center_crop"),
    ("colorjitter", "randomgrayscale", "gaussian_blur", "normalize"),
]


def printed(function, *args, **kwargs):
    """Lines that a call prints, without the work folder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        function(*args, **kwargs)
    return out.getvalue().replace(work, "WORK").splitlines()


def flat(node, prefix=""):
    """Every key of a configuration with its value and type."""
    result = {}
    for key, value in node.items():
        if hasattr(value, "items"):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = [value, type(value).__name__]
    return result


def images(sizes, domains=1):
    """Labels 0, 1, ... with ``sizes[i]`` images each."""
    path = Path(work) / "image.png"
    Image.fromarray(np.arange(10 * 14 * 3, dtype=np.uint8).reshape(10, 14, 3)).save(path)
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    return [Datum(str(path), label, i % domains, f"class {label}") for i, label in enumerate(labels)]


def sampler_orders():
    """Two passes of each sampler."""
    result = {}
    for name in ("RandomSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler"):
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)
        data = list(reversed(images([9, 5, 2, 20], domains=4)))
        sampler = build_sampler(name, data_source=data, batch_size=8, n_domain=2, n_ins=4)
        result[name] = [len(sampler), *([int(i) for i in sampler] for _ in range(2))]
    return result


def loader_orders(num_workers, epochs):
    """Indices of each epoch of a seeded training loader."""
    cfg = get_cfg_default()
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.INPUT.SIZE = (8, 8)
    with contextlib.redirect_stdout(io.StringIO()):
        tfm = build_transform(cfg, choices=["random_resized_crop"])
    torch.manual_seed(1)
    loader = build_data_loader(cfg, "RandomSampler", images([5, 6]), batch_size=4, tfm=tfm, is_train=True)
    return [[batch["index"].tolist() for batch in loader] for _ in range(epochs)]


def rates(scheduler, warmup, recount):
    """Learning rates of eight epochs."""
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.MAX_EPOCH, cfg.LR_SCHEDULER = "sgd", 1.0, 8, scheduler
    cfg.STEPSIZE = (3, 6) if scheduler == "multi_step" else (3,)
    cfg.WARMUP_RECOUNT = recount
    if warmup:
        cfg.WARMUP_EPOCH, cfg.WARMUP_TYPE = 2, warmup
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
    schedule = build_lr_scheduler(optimizer, cfg)
    result = []
    for _ in range(8):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return result


def trained(name):
    """Weights after three steps of an optimiser."""
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR = name, 0.1
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, cfg)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).pow(2).sum().backward()
        optimizer.step()
    return model.weight.flatten().tolist()


def transformed(choices, is_train):
    """Shape, and for the test transform the pixels, of a transformed image; the lines printed."""
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS, cfg.INPUT.INTERPOLATION = (8, 10), choices, "bicubic"
    lines = printed(build_transform, cfg, is_train=is_train)
    with contextlib.redirect_stdout(io.StringIO()):
        image = build_transform(cfg, is_train=is_train)(Image.open(images([1])[0].impath).convert("RGB"))
    return lines, list(image.shape), None if is_train else image.flatten()[::37].tolist()


def evaluation():
    """Printed block and results."""
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR, cfg.TEST.PER_CLASS_RESULT, cfg.TEST.COMPUTE_CMAT = work, True, True
    generator = torch.Generator().manual_seed(0)
    names = {i: f"class {i}" for i in range(5)}
    results = {}

    def run():
        evaluator = build_evaluator(cfg, lab2cname=names)
        for _ in range(3):
            labels = torch.randint(0, 4, (700,), generator=generator)
            evaluator.process(torch.randn(700, 5, generator=generator), labels)
        results.update(evaluator.evaluate())

    lines = printed(run)
    cmat = torch.load(Path(work) / "cmat.pt", weights_only=compat.DASSL == "bundled")
    return lines, list(results.items()), np.asarray(cmat).tolist()


def few_shot():
    """Indices drawn from a set whose labels do not appear in order."""
    data = list(reversed(images([9, 5, 2, 20])))
    base = DatasetBase(train_x=data)
    random.seed(5)
    with contextlib.redirect_stdout(io.StringIO()):
        drawn = base.generate_fewshot_dataset(data, data, num_shots=4, repeat=True)
    return [[next(i for i, d in enumerate(data) if d is item) for item in part] for part in drawn]


print(
    "PROBE "
    + json.dumps(
        {
            "dassl": compat.DASSL,
            "config": flat(get_cfg_default()),
            "samplers": sampler_orders(),
            "order, 0 workers, first epoch": loader_orders(0, 1),
            "order, 1 worker, three epochs": loader_orders(1, 3),
            "rates": {
                f"{s} {w} {r}": rates(s, w, r)
                for s in ("single_step", "multi_step", "cosine")
                for w in ("", "constant", "linear")
                for r in ((True, False) if w else (True,))
            },
            "optimisers": {n: trained(n) for n in ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")},
            "transforms": [transformed(c, is_train) for c in TRANSFORMS for is_train in (True, False)],
            "evaluation": evaluation(),
            "few-shot": few_shot(),
        }
    )
)
