"""CAPT by the trainer and by train.py: runs, records, resumes and errors on a data set of small pictures."""

import json
import os
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import tiny_capt  # noqa: E402

import train  # noqa: E402
import trainers  # noqa: E402
from trainers.capt.backbone.precision import cast_clip  # noqa: E402
from trainers.capt.bank.confusion_bank import ConfusionBank  # noqa: E402
from trainers.capt.bank.files import FILE, BankMismatchError  # noqa: E402

CLASSES = ["cup", "jug", "vase", "red_fox", "otter", "kite"]
PARTS = {"train": range(4), "val": range(4, 6), "test": range(6, 9)}


class TinyPictures(DatasetBase):
    """Six classes; SUBSAMPLE_CLASSES base: the first four, new: the last two. The file's number says its part."""

    def __init__(self, cfg):
        names = {"all": CLASSES, "base": CLASSES[:4], "new": CLASSES[4:]}[cfg.DATASET.SUBSAMPLE_CLASSES]
        root, parts = Path(cfg.DATASET.ROOT), {}
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}")
        for part, numbers in PARTS.items():
            if part == "train" and cfg.DATASET.NUM_SHOTS > 0:
                numbers = numbers[: cfg.DATASET.NUM_SHOTS]
            parts[part] = [
                Datum(str(root / name / f"{i}.png"), label, 0, name)
                for label, name in enumerate(names)
                for i in numbers
            ]
        super().__init__(train_x=parts["train"], val=parts["val"], test=parts["test"])


@pytest.fixture(scope="module", autouse=True)
def _registered():
    if "TinyPictures" not in DATASET_REGISTRY.registered_names():
        DATASET_REGISTRY.register(TinyPictures)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_capt.draw_pictures(folder / "data", CLASSES, 9)
    torch.save(tiny_capt.clip_state(), folder / "clip.pt")
    return folder


def options(files, out, *more):
    return [
        *("DATASET.NAME", "TinyPictures", "DATASET.ROOT", str(files / "data"), "DATASET.NUM_SHOTS", 4),
        *("DATASET.SUBSAMPLE_CLASSES", "base", "OUTPUT_DIR", str(out), "SEED", 1, "USE_CUDA", False),
        *("VERBOSE", False, "TRAINER.NAME", "CAPT", "MODEL.BACKBONE.NAME", str(files / "clip.pt")),
        *("INPUT.SIZE", (32, 32), "INPUT.TRANSFORMS", ("random_flip", "normalize"), "DATALOADER.NUM_WORKERS", 0),
        *("DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATALOADER.TEST.BATCH_SIZE", 50, "OPTIM.MAX_EPOCH", 2),
        *("OPTIM.NAME", "sgd", "OPTIM.LR", 0.01, "TRAIN.PRINT_FREQ", 2, "TRAINER.CAPT.PREC", "fp32"),
        *("TRAINER.CAPT.CACHE.VIEWS", 2, "TRAINER.CAPT.MGDE.BETA", 0.1, "TRAIN.CHECKPOINT_FREQ", 1, *more),
    ]


def build(files, out, *more):
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.merge_from_list(options(files, out, *more))
    cfg.freeze()
    set_random_seed(1)
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.refiner.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(files):
    """A run of two epochs, its trainer and its folder."""
    trainer = build(files, files / "finished")
    start = weights(trainer)
    trainer.train()
    return types.SimpleNamespace(trainer=trainer, out=files / "finished", start=start, weights=weights(trainer))


def read(out):
    return json.loads((out / "results.json").read_text()), np.load(out / "predictions.npz")


# Records


def test_record_is_consistent(finished):
    results, arrays = read(finished.out)
    labels, predicted, base = arrays["labels"], arrays["predictions"], arrays["base_predictions"]
    assert labels.tolist() == [c for c in range(4) for _ in range(3)]
    assert np.array_equal(predicted, arrays["probs"].argmax(1))
    assert np.array_equal(base, arrays["base_probs"].argmax(1))
    np.testing.assert_allclose(arrays["probs"].sum(1), 1, atol=1e-5)
    assert results["accuracy"] == pytest.approx(100 * (labels == predicted).mean())
    per_class = np.mean([100 * (predicted[labels == c] == c).mean() for c in range(4)])
    assert results["mean_per_class_accuracy"] == pytest.approx(per_class)
    assert results["confusion"]["base_accuracy"] == pytest.approx(100 * (labels == base).mean())
    assert results["num_test"] == 12
    assert results["num_train"] == 16
    assert (results["num_classes"], results["classnames"], results["epoch"]) == (4, CLASSES[:4], 2)
    assert (results["trainer"], results["base"], results["subsample"]) == ("CAPT", "ZeroshotCLIP", "base")
    assert results["config"]["TRAINER"]["CAPT"]["BANK"]["SOURCE"] == "base"
    assert sorted(arrays["impaths"]) == sorted(f"{c}/{i}.png" for c in CLASSES[:4] for i in PARTS["test"])
    sample = json.loads((finished.out / "sample.json").read_text())
    assert sample["train_x"]["cup"] == [f"cup/{i}.png" for i in PARTS["train"]]
    assert sample["val"]["red_fox"] == [f"red_fox/{i}.png" for i in PARTS["val"]]


def test_training_moved_the_weights(finished):
    assert not equal(finished.start, finished.weights)
    assert all(torch.isfinite(v).all() for v in finished.weights.values() if v.is_floating_point())


def test_bank_holds_training_images_only(finished):
    bank = ConfusionBank.load(finished.out)
    allowed = {f"{c}/{i}.png" for c in CLASSES[:4] for i in PARTS["train"]}
    assert len(bank) > 0
    assert set(bank.paths) == allowed
    assert bank.entries.index[:-1].max() < len(bank.paths)


def test_own_image_never_comes_back(finished):
    trainer, bank = finished.trainer, finished.trainer.model.bank
    for batch in trainer.train_loader_x:
        views = trainer._views(batch)
        paths = [trainer.dm.dataset.train_x[i].impath for i in views.index.tolist()]
        with torch.no_grad():
            found = trainer.model(
                views.z, views.cls, views.tokens, query_index=trainer.query_index[views.index]
            ).samples
        for row, path in enumerate(paths):
            got = bank.entries.index[found.entry[row]][found.valid[row]].tolist()
            assert os.path.relpath(path, trainer.cfg.DATASET.ROOT) not in [bank.paths[i] for i in got]


def test_before_training_it_is_the_base(files, tmp_path):
    trainer = build(files, tmp_path, "TRAINER.CAPT.BANK.AT_TEST", False)
    trainer.save_model(0, str(tmp_path / "untrained"))
    trainer.load_model(str(tmp_path / "untrained"))
    trainer.test()
    _, arrays = read(tmp_path)
    assert np.array_equal(arrays["probs"], arrays["base_probs"])


# Loading


def test_eval_on_the_same_classes_equals_the_run(files, finished, tmp_path):
    trainer = build(files, tmp_path)
    trainer.load_model(str(finished.out), epoch=2)
    trainer.test()
    np.testing.assert_array_equal(read(tmp_path)[1]["probs"], read(finished.out)[1]["probs"])
    assert read(tmp_path)[0]["epoch"] == 2


@pytest.mark.parametrize("at_test", [True, False])
def test_eval_on_other_classes(files, finished, tmp_path, at_test):
    trainer = build(files, tmp_path, "DATASET.SUBSAMPLE_CLASSES", "new", "TRAINER.CAPT.BANK.AT_TEST", at_test)
    trainer.load_model(str(finished.out), epoch=2)
    trainer.test()
    results, arrays = read(tmp_path)
    assert arrays["probs"].shape == (6, 2)
    assert results["classnames"] == CLASSES[4:]


def test_eval_with_the_words_of_another_data_set(files, finished, tmp_path):
    """Another data set has another hand-written prompt; that is no other base model."""
    trainer = build(files, tmp_path, "TRAINER.CAPT.BASE.TEMPLATE", "a photo of a {}, a type of pot.")
    trainer.load_model(str(finished.out), epoch=2)
    trainer.test()
    assert not np.array_equal(read(tmp_path)[1]["base_probs"], read(finished.out)[1]["base_probs"])


def test_precision_is_no_other_base(files, finished):
    base = finished.trainer.model.base
    half = tiny_capt.make_base(files / "clip.pt")
    cast_clip(half.prompted.clip, "fp16")
    assert half.digest() == base.digest()
    torch.save(tiny_capt.clip_state(seed=1), files / "other.pt")
    assert tiny_capt.make_base(files / "other.pt").digest() != base.digest()


def test_bank_off_at_test(files, tmp_path):
    """Training consults it, the test does not; the same weights without a bank file give the same figures."""
    trainer = build(files, tmp_path / "run", "TRAINER.CAPT.BANK.AT_TEST", False)
    trainer.train()
    assert trainer.model.bank is not None
    (tmp_path / "run" / FILE).unlink()
    other = build(files, tmp_path / "eval", "TRAINER.CAPT.BANK.AT_TEST", False)
    other.load_model(str(tmp_path / "run"), epoch=2)
    other.test()
    np.testing.assert_array_equal(read(tmp_path / "run")[1]["probs"], read(tmp_path / "eval")[1]["probs"])


def test_sam_off_loads_its_counts(files, tmp_path):
    off = ("TRAINER.CAPT.SAM.ON", False)
    build(files, tmp_path / "run", *off).train()
    trainer = build(files, tmp_path / "eval", *off)
    trainer.load_model(str(tmp_path / "run"), epoch=2)
    trainer.test()
    np.testing.assert_array_equal(read(tmp_path / "run")[1]["probs"], read(tmp_path / "eval")[1]["probs"])
    assert trainer.model.semantic_miner.counts.sum() > 0


def test_best_epoch_is_deployed(files, tmp_path):
    trainer = build(files, tmp_path, "TEST.FINAL_MODEL", "best_val")
    results = iter([50.0, 10.0])
    final = type(trainer).test

    def test(split=None):
        return next(results) if split == "val" else final(trainer, split)

    trainer.test = test
    trainer.train()
    assert read(tmp_path)[0]["epoch"] == 1
    best = torch.load(tmp_path / "capt" / "model-best.pth.tar", weights_only=True)["state_dict"]
    assert equal(weights(trainer), dict(best))


def test_best_epoch_is_never_chosen_on_test_images(files, tmp_path, monkeypatch):
    monkeypatch.setitem(PARTS, "val", PARTS["test"])
    with pytest.raises(ValueError, match="best_val needs validation images apart from the test images"):
        build(files, tmp_path, "TEST.FINAL_MODEL", "best_val")


# The same weights, however they came about


def short(trainer):
    trainer.train()
    return weights(trainer)


def test_same_seed_same_bytes(files, finished, tmp_path):
    assert equal(short(build(files, tmp_path, "TEST.NO_TEST", True)), finished.weights)


@pytest.mark.parametrize("views", [2, 0])
def test_resumed_equals_uninterrupted(files, tmp_path, views):
    mode = ("TRAINER.CAPT.CACHE.VIEWS", views, "TEST.NO_TEST", True)
    whole = short(build(files, tmp_path / "whole", *mode))
    killed = build(files, tmp_path / "killed", *mode)
    save = killed.save_model

    def save_and_die(*args, **kwargs):
        save(*args, **kwargs)
        raise KeyboardInterrupt

    killed.save_model = save_and_die
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert equal(short(build(files, tmp_path / "killed", *mode)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("views", [2, 0])
def test_number_of_workers_does_not_matter(files, tmp_path, views):
    mode = ("TRAINER.CAPT.CACHE.DISK_GB", 0, "TRAINER.CAPT.CACHE.VIEWS", views, "TEST.NO_TEST", True)
    mode += ("DATALOADER.NUM_WORKERS",)
    runs = [short(build(files, tmp_path / str(workers), *mode, workers)) for workers in (0, 1, 2)]
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])


@torch.no_grad()
def test_cached_features_are_those_of_the_image(files, finished):
    trainer = finished.trainer
    index = torch.arange(16)
    cached = trainer.cache.take(index, torch.zeros_like(index))
    pixels = torch.stack(
        [
            trainer.dm.test_loader.dataset.transform(tiny_capt.Image.open(item.impath).convert("RGB"))
            for item in trainer.dm.dataset.train_x
        ]
    )
    z, cls, tokens = trainer._encode_images(pixels)
    expected = trainer.model(z, cls, tokens).logits
    actual = trainer.model(cached.z, cached.cls, cached.tokens).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert cached.label.tolist() == [item.label for item in trainer.dm.dataset.train_x]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("TRAINER.CAPT.CACHE.MAX_GB", -1.0), "Feature cache off: 0.0 GB for 2 views, CACHE.MAX_GB is -1.0; "),
        (
            ("DATALOADER.TRAIN_X.SAMPLER", "RandomDomainSampler", "DATALOADER.TRAIN_X.N_DOMAIN", 1),
            "CACHE.VIEWS is not used: it does not know the sampler RandomDomainSampler",
        ),
    ],
)
def test_without_a_cache_images_are_encoded_and_the_log_says_so(files, tmp_path, capsys, keys, line):
    trainer = build(files, tmp_path, "OPTIM.MAX_EPOCH", 1, *keys)
    loader = trainer.train_loader_x
    trainer.train()
    assert trainer.cache is None
    assert trainer.train_loader_x is loader  # Dassl's own, which yields pixels
    assert line in capsys.readouterr().out
    assert {"shift", "gain"} <= trainer.choices.keys()  # chosen all the same


# What training may touch


def test_training_never_reads_the_test_set(files, tmp_path):
    trainer = build(files, tmp_path, "TEST.FINAL_MODEL", "best_val")

    class Forbidden(type(trainer.test_loader)):
        def __iter__(self):
            raise AssertionError("the test images were read")

    trainer.test_loader.__class__ = Forbidden
    with pytest.raises(AssertionError, match="the test images were read"):
        trainer.train()
    assert trainer.epoch == 1  # only the final test, behind the last epoch, asked for them
    assert (tmp_path / "capt" / "model.pth.tar-2").is_file()


def test_no_text_is_encoded_in_a_step(files, tmp_path):
    trainer = build(files, tmp_path, "TEST.NO_TEST", True)
    step, calls = trainer.forward_backward, []
    trainer.model.base.prompted.clip.transformer.register_forward_hook(lambda *_: calls.append(1))
    block = trainer.model.base.prompted.clip.transformer.resblocks[0]
    block.register_forward_hook(lambda *_: calls.append(1))
    seen = []

    def spied(batch):
        before = len(calls)
        out = step(batch)
        seen.append(len(calls) - before)
        return out

    trainer.forward_backward = spied
    trainer.train()
    assert calls  # the texts of the bank's classes were encoded, through the block that is watched
    assert seen == [0] * 8


# Sources of the bank


def test_zeroshot_source(files, finished, tmp_path):
    build(files, tmp_path, "TEST.NO_TEST", True, "TRAINER.CAPT.BANK.SOURCE", "zeroshot").train()
    mine, other = ConfusionBank.load(tmp_path), ConfusionBank.load(finished.out)
    assert torch.equal(mine.counts, other.counts)  # the base here is zero-shot CLIP itself
    assert mine.fingerprint["source"] == "zeroshot"


def test_full_set_bank(files, tmp_path, capsys):
    keys = ("DATASET.NUM_SHOTS", 2, "TRAINER.CAPT.BANK.SHOTS", -1, "TEST.NO_TEST", True)
    trainer = build(files, tmp_path, *keys)
    trainer.train()
    bank = ConfusionBank.load(tmp_path)
    assert len(bank.paths) == 16  # four images of each class, though training sees two
    own = [bank.paths[i] for i in trainer.query_index.tolist()]
    assert own == [os.path.relpath(i.impath, files / "data") for i in trainer.dm.dataset.train_x]
    assert "published, from the full training set (16 images)" in capsys.readouterr().out


def test_more_views(files, tmp_path):
    build(files, tmp_path, "TRAINER.CAPT.BANK.VIEWS", 3, "TEST.NO_TEST", True).train()
    bank = ConfusionBank.load(tmp_path)
    assert set(bank.entries.view[:-1].tolist()) == {0, 1, 2}


@pytest.fixture
def coop_base(files):
    folder = files / "coop"
    if not folder.is_dir():
        keys = ("TRAINER.NAME", "CoOp", "TRAINER.COOP.N_CTX", 2, "TRAINER.COOP.PREC", "fp32", "OPTIM.MAX_EPOCH", 1)
        build(files, folder, *keys, "TEST.NO_TEST", True).train()
    return folder


def test_crossfit_judges_each_image_by_a_base_that_did_not_see_it(files, coop_base, tmp_path, monkeypatch):
    import trainers.capt.bank.builder as module

    config = tmp_path / "fold.yaml"
    config.write_text("OPTIM:\n  MAX_EPOCH: 1\nTRAINER:\n  COOP:\n    N_CTX: 2\n    PREC: fp32\n")
    seen = []
    real = module.fit_fold

    def spied(cfg, kept, directory, prompted, spec):
        judge = real(cfg, kept, directory, prompted, spec)
        judge.fitted_on = {item.impath for item in kept}
        seen.append(judge)
        return judge

    monkeypatch.setattr(module, "fit_fold", spied)
    keys = ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", str(coop_base), "TEST.NO_TEST", True)
    keys += ("TRAINER.CAPT.BANK.SOURCE", "crossfit", "TRAINER.CAPT.BANK.FOLDS", 2)
    trainer = build(files, tmp_path / "run", *keys, "TRAINER.CAPT.BANK.FOLD_CONFIG", str(config))
    judged = []
    real_judge = module.BankBuilder._judge_by

    def spied_judge(self, judges, source, folds):
        for item, fold in zip(source, folds.tolist(), strict=True):
            assert item.impath not in judges[fold].fitted_on
            judged.append(item.impath)
        return real_judge(self, judges, source, folds)

    monkeypatch.setattr(module.BankBuilder, "_judge_by", spied_judge)
    trainer.train()
    assert sorted(judged) == sorted(item.impath for item in trainer.dm.dataset.train_x)
    assert len(seen) == 2
    assert not seen[0].fitted_on & seen[1].fitted_on
    digests = {judge.digest() for judge in seen} | {trainer.model.base.digest()}
    assert len(digests) == 3
    assert ConfusionBank.load(tmp_path / "run").fingerprint["source"] == "crossfit"


# Bad input: one line


def main(capsys, files, out, *more):
    """Exit code and the lines of stderr."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "collect_env_info", lambda: "")
        code = train.main([str(word) for word in options(files, out, *more)])
    return code, [line for line in capsys.readouterr().err.splitlines() if line.strip()]


def one_line(result):
    code, lines = result
    assert code != 0
    assert len(lines) == 1, lines
    return lines[0]


def test_a_run_by_the_command_line(capsys, files, tmp_path):
    code, lines = main(capsys, files, tmp_path, "OPTIM.MAX_EPOCH", 1)
    assert (code, lines) == (0, [])
    assert (tmp_path / "results.json").is_file()


CASES = {
    "backbone": (
        ("MODEL.BACKBONE.NAME", "ViT-B/61"),
        'ViT-B/61" is neither a file nor one of .*do you mean "ViT-B/16"',
    ),
    "data": (("DATASET.ROOT", "/no/such/folder"), "no folder /no/such/folder"),
    "size": (("INPUT.SIZE", "(64, 64)"), r"INPUT.SIZE must be \(32, 32\).*got \(64, 64\); add INPUT.SIZE"),
    "base": (("TRAINER.CAPT.BASE.NAME", "CoOp"), "BASE.DIR must name the run folder of the CoOp base"),
    "no_checkpoint": (("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", "/none"), 'No model at "/none'),
    "values": (
        ("TRAINER.CAPT.PREC", "fp8", "TRAINER.CAPT.BANK.SOURCE", "llm", "TRAINER.CAPT.SEM.NUM_PAIRS", 0),
        "TRAINER.CAPT.PREC must be one of .*got 'fp8'; TRAINER.CAPT.BANK.SOURCE must be one of .*'llm'; "
        "TRAINER.CAPT.SEM.NUM_PAIRS must be at least 1, got 0",
    ),
    "crossfit": (
        ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BANK.SOURCE", "crossfit"),
        "BANK.FOLD_CONFIG must be a yaml for crossfit",
    ),
    "key": (("TRAINER.CAPT.BANK.SORCE", "base"), "SORCE"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_settings(capsys, files, tmp_path, case):
    keys, message = CASES[case]
    assert re.search(message, one_line(main(capsys, files, tmp_path, *keys)))


def test_class_specific_contexts_are_no_base(capsys, files, tmp_path):
    keys = ("TRAINER.NAME", "CoOp", "TRAINER.COOP.N_CTX", 2, "TRAINER.COOP.CSC", True, "TRAINER.COOP.PREC", "fp32")
    build(files, tmp_path / "csc", *keys).save_model(0, str(tmp_path / "csc"))
    keys = ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", tmp_path / "csc")
    assert "CSC False" in one_line(main(capsys, files, tmp_path / "run", *keys))


def test_checkpoint_of_another_base(files, finished, coop_base, tmp_path):
    keys = ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", str(coop_base))
    with pytest.raises(ValueError, match="was trained on another base model") as caught:
        build(files, tmp_path, *keys).load_model(str(finished.out), epoch=2)
    assert "\n" not in str(caught.value)


def test_other_checkpoints_are_refused(files, finished, coop_base, tmp_path):
    trainer = build(files, tmp_path)
    with pytest.raises(FileNotFoundError, match="without trainer.load_model"):  # PLOT's train.py with --eval-only
        trainer.test()
    for nothing in ("", None):
        trainer.load_model(nothing)
        with pytest.raises(FileNotFoundError, match="give --model-dir"):
            trainer.test()
    with pytest.raises(FileNotFoundError, match=r"model.pth.tar-9.*the folder holds"):
        trainer.load_model(str(finished.out), epoch=9)
    (tmp_path / "capt").mkdir(exist_ok=True)
    source = coop_base / "prompt_learner" / "model.pth.tar-1"
    (tmp_path / "capt" / "model.pth.tar-1").write_bytes(source.read_bytes())
    with pytest.raises(ValueError, match="is no checkpoint of CAPT"):
        trainer.load_model(str(tmp_path), epoch=1)
    checkpoint = torch.load(finished.out / "capt" / "model.pth.tar-2", weights_only=True)
    checkpoint["state_dict"]["format"] += 8
    torch.save(checkpoint, tmp_path / "capt" / "model.pth.tar-1")
    with pytest.raises(ValueError, match="has format 10, this code reads up to"):
        trainer.load_model(str(tmp_path), epoch=1)
    with pytest.raises(ValueError, match=r"other TRAINER.CAPT switches or sizes than this run"):
        build(files, tmp_path / "x", "TRAINER.CAPT.MGDE.HIDDEN_RATIO", 2).load_model(str(finished.out), epoch=2)


def test_bank_of_another_run(files, finished, tmp_path, capsys):
    for suffix in ("safetensors", "json"):
        name = f"confusion_bank.{suffix}"
        (tmp_path / name).write_bytes((finished.out / name).read_bytes())
    with pytest.raises(BankMismatchError, match="views: bank has 1, this run has 2"):
        build(files, tmp_path, "TRAINER.CAPT.BANK.VIEWS", 2).train()
    line = one_line(main(capsys, files, tmp_path, "TRAINER.CAPT.BANK.VIEWS", 2))
    assert "was built for another run" in line


def test_confusion_features_belong_to_the_checkpoint(files, finished, tmp_path):
    """A stored bank holds no tokens; what its entries are to a checkpoint's adapter lies beside the checkpoint."""
    shutil.copytree(finished.out, tmp_path / "run")
    (path,) = (tmp_path / "run" / "capt").glob("model.pth.tar-2.*")
    trainer = build(files, tmp_path / "eval")
    save_file({"confusion_features": torch.zeros(1, 64)}, path)
    with pytest.raises(BankMismatchError, match=r"holds 0 entries, the bank \d+; use one run folder"):
        trainer.load_model(str(tmp_path / "run"), epoch=2)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        trainer.load_model(str(tmp_path / "run"), epoch=2)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="No confusion features at"):
        trainer.load_model(str(tmp_path / "run"), epoch=2)


def test_damaged_bank(files, tmp_path, capsys):
    (tmp_path / FILE).write_bytes(b"nothing")
    assert f'"{tmp_path / FILE}" is not a confusion bank or is damaged' in one_line(main(capsys, files, tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", [0, 2])
def test_damaged_image(files, tmp_path, capsys, workers, views):
    tiny_capt.draw_pictures(tmp_path / "data", CLASSES, 9)
    (tmp_path / "data" / "jug" / "2.png").write_bytes(b"\x89PNG nothing")
    keys = ("DATASET.ROOT", tmp_path / "data", "DATALOADER.NUM_WORKERS", workers, "TRAINER.CAPT.CACHE.VIEWS", views)
    assert f"{tmp_path}/data/jug/2.png" in one_line(main(capsys, files, tmp_path / "run", *keys))


# Features on the disk


def without_times(record):
    return {
        k: v for k, v in record.items() if k not in ("seconds", "images_per_second_test", "peak_memory_mb", "config")
    }


@pytest.mark.parametrize("base", ["ZeroshotCLIP", "CoOp"])
def test_stored_features_change_no_bit(files, tmp_path, base):
    """Bank, gain, shift, training and test, of a run that reads everything and of one that never stores anything."""
    own = files / f"stored_{base}"
    tiny_capt.draw_pictures(own, CLASSES, 9)
    more = ("DATASET.ROOT", str(own), "TRAINER.CAPT.BANK.VIEWS", 2, "TRAINER.CAPT.BANK.NEAR_MISSES", 0.5)
    if base == "CoOp":
        keys = ("TRAINER.NAME", "CoOp", "TRAINER.COOP.PREC", "fp32", "OPTIM.MAX_EPOCH", 1, "TRAINER.COOP.N_CTX", 2)
        build(files, tmp_path / "coop", *keys, "DATASET.ROOT", str(own)).train()
        more += ("TRAINER.CAPT.BASE.NAME", "CoOp", "TRAINER.CAPT.BASE.DIR", str(tmp_path / "coop"))
    runs = {}
    for name, disk in (("without", 0), ("made", 1), ("read", 1)):
        trainer = build(files, tmp_path / name, *more, "TRAINER.CAPT.CACHE.DISK_GB", disk)
        trainer.train()
        record, arrays = read(tmp_path / name)
        bank = ConfusionBank.load(tmp_path / name)
        runs[name] = record, dict(arrays), weights(trainer), bank.entries.named()
    records = [without_times(record) for record, *_ in runs.values()]
    assert [record.pop("num_encoded_before") for record in records] == [0, 0, 12]
    assert records[0] == records[1] == records[2]
    for name in ("made", "read"):
        for mine, theirs in zip(runs[name][1:], runs["without"][1:], strict=True):
            assert mine.keys() == theirs.keys()
            assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


def test_a_bank_of_another_base_shares_the_images(files, tmp_path, monkeypatch):
    """CAPT reads what zero-shot CLIP left of the test images, and the other way round."""
    own = tmp_path / "data"
    tiny_capt.draw_pictures(own, CLASSES, 9)
    capt = build(files, tmp_path / "capt", "DATASET.ROOT", str(own))
    capt.train()
    zero_shot = build(files, tmp_path / "zs", "DATASET.ROOT", str(own), "TRAINER.NAME", "ZeroshotCLIP")
    monkeypatch.setattr(type(zero_shot.clip), "encode_image", None)
    zero_shot.test()
    assert read(tmp_path / "zs")[0]["num_encoded_before"] == 12
