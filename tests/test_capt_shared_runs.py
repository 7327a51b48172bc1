"""CAPT by several processes: its bank to the byte, its weights to 1e-6, and the answers of one process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY

sys.path[:0] = [str(Path(__file__).parent), *(str(Path(__file__).parent / name) for name in ("capt", "trainers"))]

import test_capt_end_to_end as capt_runs  # noqa: E402
import tiny_capt  # noqa: E402
from processes import together  # noqa: E402
from safetensors import safe_open  # noqa: E402

UNEVEN = ("DATALOADER.TRAIN_X.BATCH_SIZE", 5, "DATALOADER.TEST.BATCH_SIZE", 5, "OPTIM.LR", 0.002)
WAYS = {
    "cached": (),
    "not cached": ("TRAINER.CAPT.CACHE.VIEWS", 0, "TRAINER.CAPT.BANK.VIEWS", 2),
    "chosen on validation images": ("TEST.FINAL_MODEL", "best_val"),
    "soft counts, zero-shot judge": ("TRAINER.CAPT.BANK.COUNTS", "soft", "TRAINER.CAPT.BANK.SOURCE", "zeroshot"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    if "TinyPictures" not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(capt_runs.TinyPictures)
    folder = tmp_path_factory.mktemp("tiny")
    tiny_capt.draw_pictures(folder / "data", capt_runs.CLASSES, 9)
    torch.save(tiny_capt.clip_state(), folder / "clip.pt")
    return folder


def run(files, out, number, *more):
    """Train in so many processes, each run with encoded images of its own; returns what they printed of the bank."""
    options = (*UNEVEN, "TRAINER.CAPT.CACHE.DIR", str(out / ".features"), *more)
    together(number, lambda: capt_runs.build(files, out, *options).train(), out.parent / f"of_{out.name}")
    return (out.parent / f"of_{out.name}" / "printed0").read_text()


def names(out):
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and "tensorboard" not in p.parts)


def tensors(path):
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict


@pytest.mark.parametrize("way", [w if w == "cached" else pytest.param(w, marks=pytest.mark.slow) for w in WAYS])
def test_two_processes_leave_what_one_leaves(way, files, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    said = [run(files, one, 1, *WAYS[way]), run(files, two, 2, *WAYS[way])]
    assert names(one) == names(two)
    for name in names(one):
        if name.startswith(("confusion_bank", "sample", "serving", "pair_features", ".features")):
            if not name.endswith(".safetensors"):
                assert (one / name).read_bytes() == (two / name).read_bytes(), name
            else:
                torch.testing.assert_close(tensors(two / name), tensors(one / name), rtol=0, atol=0, msg=name)
        elif ".pth.tar" in name and not name.endswith(".safetensors"):
            pair = [torch.load(out / name, weights_only=True)["state_dict"] for out in (two, one)]
            torch.testing.assert_close(*pair, rtol=0, atol=1e-6)
    a, b = (np.load(out / "predictions.npz") for out in (one, two))
    for name in ("labels", "predictions", "base_probs", "impaths"):
        assert (a[name] == b[name]).all(), name
    results = [json.loads((out / "results.json").read_text()) for out in (one, two)]
    for name in ("accuracy", "confusion", "choices", "epoch"):
        assert results[0][name] == results[1][name], name
    assert results[1]["processes"] == 2
    assert "processes" not in results[0]
    assert "Confusion bank: " in said[0]
    assert [line for line in said[0].splitlines() if "bank" in line] == [
        line for line in said[1].splitlines() if "bank" in line
    ]
    assert (tmp_path / "of_two/printed1").read_text() != ""  # forks are not silenced, train.py does that


@pytest.mark.slow
def test_the_random_dropout_of_the_experts_falls_on_the_same_images(files, tmp_path):
    """With large steps all that the experts drop shows in the weights."""
    more = ("TRAINER.CAPT.MGDE.DROPOUT", 0.5, "OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 0.01, "TRAINER.CAPT.LOSS.KEEP", 0.0)
    for number, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        run(files, out, number, *more)
    one, two = (
        torch.load(tmp_path / name / "capt/model.pth.tar-3", weights_only=True)["state_dict"] for name in ("one", "two")
    )
    torch.testing.assert_close(two, one, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_base_learners_of_folds_are_trained_together(files, tmp_path):
    """Runs within the run: every process loads what the first one has written of them."""
    base = ("TRAINER.NAME", "CoOp", "TRAINER.COOP.N_CTX", 2, "TRAINER.COOP.PREC", "fp32", "OPTIM.MAX_EPOCH", 1)
    run(files, tmp_path / "base", 2, *base, "TEST.NO_TEST", True)
    config = tmp_path / "fold.yaml"
    config.write_text("OPTIM:\n  MAX_EPOCH: 1\nTRAINER:\n  COOP:\n    N_CTX: 2\n    PREC: fp32\n")
    keys = ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", str(tmp_path / "base"))
    keys += ("TRAINER.CAPT.BANK.SOURCE", "crossfit", "TRAINER.CAPT.BANK.FOLDS", 2)
    for number, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        run(files, out, number, *keys, "TRAINER.CAPT.BANK.FOLD_CONFIG", str(config))
        assert len(list((out / "crossfit").glob("*/prompt_learner/model.pth.tar-1"))) == 2
    banks = [tensors(tmp_path / name / "confusion_bank.safetensors") for name in ("one", "two")]
    assert banks[0].keys() == banks[1].keys()
    for key, value in banks[0].items():
        torch.testing.assert_close(banks[1][key].double(), value.double(), rtol=0, atol=1e-5, msg=key)
    one, two = (
        torch.load(tmp_path / name / "capt/model.pth.tar-2", weights_only=True)["state_dict"] for name in ("one", "two")
    )
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
