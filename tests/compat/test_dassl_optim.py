"""Optimisers, schedules, accuracy, evaluation."""

import math

import compat

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy, compute_distance_matrix
from dassl.optim import build_lr_scheduler, build_optimizer
from sklearn.metrics import confusion_matrix, f1_score
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.skipif(compat.DASSL != "bundled", reason="an installed Dassl is in use")


def optim_cfg(**values):
    cfg = get_cfg_default().OPTIM
    for key, value in values.items():
        cfg[key] = value
    return cfg


def rates(epochs=8, **values):
    """Learning rate of each epoch, base rate 1."""
    cfg = optim_cfg(NAME="sgd", LR=1.0, MAX_EPOCH=epochs, **values)
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
    scheduler = build_lr_scheduler(optimizer, cfg)
    result = []
    for _ in range(epochs):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return result


WARM = {"WARMUP_EPOCH": 2}
# Sequences of Dassl 0.6.3 itself: 8 epochs, warm-up 2, step 3.
GOLDEN = [
    ({"LR_SCHEDULER": "cosine", "WARMUP_TYPE": "constant"}, "1e-5 1e-5 1 .96194 .85355 .69134 .5 .30866"),
    ({"LR_SCHEDULER": "cosine", "WARMUP_TYPE": "linear"}, "1e-5 .5 1 .96194 .85355 .69134 .5 .30866"),
    ({"LR_SCHEDULER": "cosine", "WARMUP_TYPE": "constant", "WARMUP_RECOUNT": False},
     "1e-5 1e-5 1 .80996 .58579 .36162 .17157 .04459"),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": (3,), "WARMUP_TYPE": "linear"}, "1e-5 .5 1 1 1 .1 .1 .1"),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": (3,), "WARMUP_TYPE": "linear", "WARMUP_RECOUNT": False},
     "1e-5 .5 1 .1 .1 .1 .01 .01"),
    ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (3, 6), "WARMUP_TYPE": "linear"}, "1e-5 .5 1 1 1 .1 .1 .1"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), GOLDEN)
def test_schedule_golden(values, expected):
    assert rates(**WARM, **values) == pytest.approx([float(x) for x in expected.split()], abs=5e-6)


def schedule(name, e, total=8):
    """Rate of epoch ``e`` without warm-up, from the formula."""
    if name == "cosine":
        return (1 + math.cos(math.pi * e / total)) / 2
    return 0.1 ** sum(e >= m for m in ((3, 6) if name == "single_step" else (3, 5)))


def expected_rate(name, warmup, recount, e):
    """The formulae of the schedules with a warm-up of 2 epochs."""
    if not warmup:
        return schedule(name, e)
    if e < 2:
        return 1e-5 if warmup == "constant" or e == 0 else e / 2
    if recount:
        return schedule(name, e - 2)
    return schedule(name, e) / schedule(name, 2)


COMBINATIONS = [
    (name, warmup, recount)
    for name in ("single_step", "multi_step", "cosine")
    for warmup in ("", "constant", "linear")
    for recount in ((True, False) if warmup else (True,))
]


@pytest.mark.parametrize(("name", "warmup", "recount"), COMBINATIONS)
def test_all_combinations_follow_the_formulae(name, warmup, recount):
    values = {"LR_SCHEDULER": name, "STEPSIZE": (3, 5) if name == "multi_step" else (3,), "WARMUP_RECOUNT": recount}
    if warmup:
        values |= {"WARMUP_EPOCH": 2, "WARMUP_TYPE": warmup}
    assert rates(**values) == pytest.approx([expected_rate(name, warmup, recount, e) for e in range(8)], rel=1e-9)


@pytest.mark.parametrize(("name", "warmup", "recount"), COMBINATIONS)
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_restored_schedules_continue_exactly(name, warmup, recount, steps):
    values = {"LR_SCHEDULER": name, "STEPSIZE": (3, 5) if name == "multi_step" else (3,), "WARMUP_RECOUNT": recount}
    if warmup:
        values |= {"WARMUP_EPOCH": 2, "WARMUP_TYPE": warmup}
    cfg = optim_cfg(NAME="sgd", LR=1.0, MAX_EPOCH=8, **values)

    def build():
        optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
        return optimizer, build_lr_scheduler(optimizer, cfg)

    optimizer, scheduler = build()
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    from dassl.optim.lr_scheduler import restore_scheduler

    resumed_optimizer, resumed = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    restore_scheduler(resumed, scheduler.state_dict())
    for _ in range(8 - steps):
        assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for o, s in ((optimizer, scheduler), (resumed_optimizer, resumed)):
            o.step()
            s.step()


def test_wrapper_attributes():
    cfg = optim_cfg(LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="constant", NAME="sgd")
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], cfg)
    scheduler = build_lr_scheduler(optimizer, cfg)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert (scheduler.warmup_epoch, scheduler.cons_lr) == (1, 1e-5)
    assert isinstance(scheduler.successor, torch.optim.lr_scheduler.CosineAnnealingLR)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.last_epoch == 1
    assert scheduler.get_last_lr() == scheduler.successor.get_last_lr()


def test_schedule_errors():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"scheduler must be one of \['single_step', .*\], but got foo"):
        build_lr_scheduler(optimizer, optim_cfg(LR_SCHEDULER="foo"))
    with pytest.raises(ValueError, match="WARMUP_TYPE must be constant or linear"):
        build_lr_scheduler(optimizer, optim_cfg(WARMUP_EPOCH=1, WARMUP_TYPE="foo"))
    with pytest.raises(TypeError, match="whole number"):
        build_lr_scheduler(optimizer, optim_cfg(STEPSIZE=(1.5,)))
    with pytest.raises(TypeError, match="list or tuple"):
        build_lr_scheduler(optimizer, optim_cfg(LR_SCHEDULER="multi_step", STEPSIZE=3))


def test_optimisers():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    sgd = build_optimizer(model, optim_cfg(NAME="sgd"))
    assert type(sgd) is torch.optim.SGD
    group = sgd.param_groups[0]
    assert len(group["params"]) == 2  # the frozen one too
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.0003, 0.9, 0.0005)
    assert build_optimizer(model.parameters(), optim_cfg(NAME="amsgrad")).param_groups[0]["amsgrad"]
    assert type(build_optimizer(model, optim_cfg(NAME="adamw"))) is torch.optim.AdamW
    assert build_optimizer(model, optim_cfg(NAME="rmsprop")).param_groups[0]["alpha"] == 0.99
    with pytest.raises(ValueError, match=r"optim must be one of \['adam', .*\], but got lion"):
        build_optimizer(model, optim_cfg(NAME="lion"))


def test_staged_rates():
    model = torch.nn.Sequential()
    model.old, model.new = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    cfg = optim_cfg(NAME="sgd", LR=1.0, STAGED_LR=True, NEW_LAYERS=("new",), BASE_LR_MULT=0.25)
    groups = build_optimizer(model, cfg).param_groups
    assert [(g["lr"], len(g["params"])) for g in groups] == [(0.25, 2), (1.0, 2)]
    assert groups[0]["params"][0] is model.old.weight
    with pytest.raises(TypeError, match=r"needs an nn\.Module"):
        build_optimizer(model.parameters(), cfg)
    with pytest.warns(UserWarning, match="no effect on parameter groups"):
        build_optimizer(model, cfg, param_groups=[{"params": [model.old.weight]}])


def test_compute_accuracy():
    output = torch.tensor([[3.0, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
    target = torch.tensor([0, 2, 2, 1])
    top1, top2 = compute_accuracy((output,), target, topk=(1, 2))
    assert top1.shape == (1,)
    assert (top1.item(), top2.item()) == (50.0, 75.0)


def test_distances():
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(compute_distance_matrix(a, b), torch.cdist(a, b) ** 2)
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(compute_distance_matrix(a, b, "cosine"), 1 - cosine)
    with pytest.raises(ValueError, match="metric must be"):
        compute_distance_matrix(a, b, "l1")


def test_evaluation(tmp_path, capsys):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR, cfg.TEST.PER_CLASS_RESULT, cfg.TEST.COMPUTE_CMAT = str(tmp_path), True, True
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (1500,), generator=generator)  # class 4 is predicted, never true
    logits = torch.randn(1500, 5, generator=generator)
    evaluator = build_evaluator(cfg, lab2cname={i: f"c{i}" for i in range(5)})
    for part in range(0, 1500, 400):
        evaluator.process(logits[part : part + 400], labels[part : part + 400])
    results = evaluator.evaluate()
    y, p = labels.numpy(), logits.argmax(1).numpy()
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    assert results["accuracy"] == pytest.approx(100 * (y == p).mean())
    assert results["macro_f1"] == pytest.approx(100 * f1_score(y, p, average="macro", labels=np.unique(y)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        "Loading evaluator: Classification",
        "=> result",
        "* total: 1,500",
        f"* correct: {(y == p).sum():,}",
        f"* accuracy: {results['accuracy']:.1f}%",
        f"* error: {results['error_rate']:.1f}%",
        f"* macro_f1: {results['macro_f1']:.1f}%",
    ]
    n, hits = (y == 0).sum(), ((y == 0) & (p == 0)).sum()
    assert lines[7:9] == [
        "=> per-class result",
        f"* class: 0 (c0)\ttotal: {n:,}\tcorrect: {hits:,}\tacc: {100 * hits / n:.1f}%",
    ]
    assert lines[-2:] == [
        f"* average: {results['perclass_accuracy']:.1f}%",
        f"Confusion matrix is saved to {tmp_path}/cmat.pt",
    ]
    cmat = torch.load(tmp_path / "cmat.pt", weights_only=True)
    np.testing.assert_allclose(cmat.numpy(), confusion_matrix(y, p, normalize="true"))
    evaluator.reset()
    with pytest.raises(ZeroDivisionError, match="no sample"):
        evaluator.evaluate()


def test_per_class_result_needs_names():
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    with pytest.raises(AssertionError, match="class names"):
        build_evaluator(cfg)


def test_evaluator_makes_no_sync_on_a_gpu():
    evaluator = build_evaluator(get_cfg_default())
    with FakeTensorMode():  # a fake CUDA tensor raises where its value would be needed on the host
        evaluator.process(torch.empty(8, 5, device="cuda"), torch.empty(8, dtype=torch.int64, device="cuda"))
