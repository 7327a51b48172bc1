"""train.py: flags, merge order, banners and the one-line errors. Trainers here are probes that train nothing."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import train

ROOT = Path(train.__file__).resolve().parent
METHOD_YAMLS = sorted((ROOT / "configs" / "trainers").rglob("*.yaml"))
DATASET_YAMLS = sorted((ROOT / "configs" / "datasets").glob("*.yaml"))


def parse(*argv: str):
    return train.build_parser().parse_args(argv)


def config(*argv: str):
    return train.setup_cfg(parse(*argv))


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str, name: str = "method.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def probe(monkeypatch, tmp_path):
    """Replaces the trainer by a recorder; `probe.on_train` may be set to a function that is run as training."""
    seen = SimpleNamespace(calls=[], cfg=None, on_train=lambda: None, argv=["--output-dir", str(tmp_path / "out")])

    class Probe:
        def train(self):
            seen.calls.append("train")
            seen.on_train()

        def load_model(self, directory, epoch=None):
            seen.calls.append(("load_model", directory, epoch))

        def test(self):
            seen.calls.append("test")

    def build(cfg):
        seen.cfg = cfg
        return Probe()

    monkeypatch.setattr(train, "build_trainer", build)
    monkeypatch.setattr(train, "collect_env_info", lambda: "a machine")
    return seen


# ---- merge order ----


def test_later_sources_win(yaml_file):
    dataset = yaml_file("DATASET:\n  NAME: Caltech101\nOPTIM:\n  MAX_EPOCH: 1\n  LR: 0.1\nSEED: 1\n", "dataset.yaml")
    method = yaml_file("OPTIM:\n  MAX_EPOCH: 2\nSEED: 2\nMODEL:\n  BACKBONE:\n    NAME: RN50\n")
    files = ("--dataset-config-file", dataset, "--config-file", method)
    cfg = config(*files)
    assert (cfg.DATASET.NAME, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.SEED) == ("Caltech101", 0.1, 2, 2)
    cfg = config(*files, "--seed", "3", "--backbone", "ViT-B/16")
    assert (cfg.SEED, cfg.MODEL.BACKBONE.NAME) == (3, "ViT-B/16")
    cfg = config(*files, "--seed", "3", "SEED", "4", "OPTIM.MAX_EPOCH", "9")
    assert (cfg.SEED, cfg.OPTIM.MAX_EPOCH) == (4, 9)


def test_every_flag_reaches_its_key():
    cfg = config(
        *("--root", "r", "--output-dir", "o", "--resume", "s", "--seed", "7", "--trainer", "CoOp"),
        *("--backbone", "b", "--head", "h", "--transforms", "normalize", "--source-domains", "x", "y"),
        *("--target-domains", "z"),
    )
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.RESUME, cfg.SEED, cfg.TRAINER.NAME) == ("r", "o", "s", 7, "CoOp")
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("b", "h")
    assert list(cfg.INPUT.TRANSFORMS) == ["normalize"]
    assert (list(cfg.DATASET.SOURCE_DOMAINS), list(cfg.DATASET.TARGET_DOMAINS)) == (["x", "y"], ["z"])
    assert cfg.is_frozen()


def test_seed_of_the_yaml_counts_where_no_flag_is_given(yaml_file):
    method = yaml_file("SEED: 5\n")
    assert config("--config-file", method).SEED == 5
    assert config("--config-file", method, "--seed", "0").SEED == 0
    assert config("--config-file", method, "--seed", "-1").SEED == -1


def test_seed_zero_seeds(probe, capsys):
    def draw():
        probe.drawn = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002

    probe.on_train = draw
    results = []
    for _ in range(2):
        random.seed(None)
        torch.seed()
        assert train.main([*probe.argv, "--seed", "0"]) == 0
        results.append(probe.drawn)
    assert results[0] == results[1]
    assert "Setting fixed seed: 0\n" in capsys.readouterr().out


# ---- configuration files ----


@pytest.mark.parametrize("path", METHOD_YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_method_yaml_loads_and_names_its_command(path):
    cfg = config("--config-file", str(path))
    assert cfg.OPTIM.MAX_EPOCH > 0
    first = path.read_text().splitlines()[0]
    script = re.search(r"bash (scripts/\S+\.sh)", first)
    assert first.startswith("# ")
    assert (ROOT / script.group(1)).is_file()


@pytest.mark.parametrize("path", DATASET_YAMLS, ids=lambda path: path.stem)
def test_dataset_yaml_names_a_registered_data_set(path):
    from dassl.data.datasets import DATASET_REGISTRY

    assert config("--dataset-config-file", str(path)).DATASET.NAME in DATASET_REGISTRY.registered_names()


def test_files_that_the_current_folder_lacks_come_from_the_checkout(monkeypatch, tmp_path):
    files = ("--config-file", "configs/trainers/CAPT/demo.yaml", "--backbone", "assets/glyphs_clip.pt")
    cfg = config(*files)
    assert (cfg.MODEL.BACKBONE.NAME, cfg.TRAINER.CAPT.SEM.PROMPTS) == ("assets/glyphs_clip.pt", "descriptions")
    monkeypatch.chdir(tmp_path)
    away = config(*files)
    found = (away.MODEL.BACKBONE.NAME, away.TRAINER.CAPT.SEM.PROMPTS)
    assert found == (str(ROOT / "assets/glyphs_clip.pt"), str(ROOT / "descriptions"))
    assert away.OPTIM == cfg.OPTIM
    (tmp_path / "descriptions").mkdir()
    assert config(*files, "MODEL.BACKBONE.NAME", "ViT-B/16").TRAINER.CAPT.SEM.PROMPTS == "descriptions"


# Values as published (the CoOp, MaPLe and PromptSRC repositories): epochs, lr, batch, backbone
PUBLISHED = {
    "CoOp/rn50": (200, 0.002, 32, "RN50"),
    "CoOp/rn50_ep50": (50, 0.002, 32, "RN50"),
    "CoOp/rn101": (200, 0.002, 32, "RN101"),
    "CoOp/vit_b32_ep50": (50, 0.002, 32, "ViT-B/32"),
    "CoOp/vit_b16_ctxv1": (200, 0.002, 32, "ViT-B/16"),
    "CoOp/vit_b16_ep50_ctxv1": (50, 0.002, 32, "ViT-B/16"),
    "CoOp/vit_b16_ep100": (100, 0.002, 32, "ViT-B/16"),
    "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1": (10, 0.002, 1, "ViT-B/16"),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx": (5, 0.0035, 4, "ViT-B/16"),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets": (2, 0.0026, 4, "ViT-B/16"),
    "IVLP/vit_b16_c2_ep5_batch4_2+2ctx": (5, 0.0035, 4, "ViT-B/16"),
    "IVLP/vit_b16_c2_ep20_batch4_4+4ctx": (20, 0.0025, 4, "ViT-B/16"),
    "VPT/vit_b16_c2_ep5_batch4_4": (5, 0.0025, 4, "ViT-B/16"),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": (20, 0.0025, 4, "ViT-B/16"),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": (20, 0.0025, 4, "ViT-B/16"),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot": (50, 0.0025, 4, "ViT-B/16"),
}
PROMPTS = {
    "CoOp/vit_b16": ("COOP", {"N_CTX": 16, "CTX_INIT": ""}),
    "CoOp/vit_b16_ctxv1": ("COOP", {"CTX_INIT": "a photo of a", "CLASS_TOKEN_POSITION": "end", "CSC": False}),
    "CoCoOp/vit_b16_c8_ep10_batch1": ("COCOOP", {"N_CTX": 8, "CTX_INIT": ""}),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx": ("MAPLE", {"N_CTX": 2, "PROMPT_DEPTH": 9}),
    "MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets": ("MAPLE", {"N_CTX": 2, "PROMPT_DEPTH": 3}),
    "IVLP/vit_b16_c2_ep5_batch4_4ctx_language_only": (
        "IVLP",
        {"N_CTX_VISION": 0, "N_CTX_TEXT": 4, "PROMPT_DEPTH_VISION": 0, "PROMPT_DEPTH_TEXT": 12},
    ),
    "VPT/vit_b16_c2_ep5_batch4_4": ("VPT", {"N_CTX_VISION": 8, "PROMPT_DEPTH_VISION": 12}),
    "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx": (
        "PROMPTSRC",
        {"TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": 15, "GPA_STD": 1, "PROMPT_DEPTH_TEXT": 9},
    ),
    "PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot": ("PROMPTSRC", {"GPA_MEAN": 30, "GPA_STD": 30}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name):
    cfg = config("--config-file", str(ROOT / "configs" / "trainers" / f"{name}.yaml"))
    found = (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.MODEL.BACKBONE.NAME)
    assert found == PUBLISHED[name]
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR_SCHEDULER, cfg.OPTIM.WARMUP_TYPE) == ("sgd", "cosine", "constant")
    assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_CONS_LR, cfg.OPTIM.WEIGHT_DECAY) == (1, 1e-5, 5e-4)
    assert (cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION) == ((224, 224), "bicubic")
    assert cfg.INPUT.TRANSFORMS == ("random_resized_crop", "random_flip", "normalize")
    assert cfg.INPUT.RRCROP_SCALE == (0.08, 1.0)
    assert cfg.DATALOADER.TEST.BATCH_SIZE == 100
    print_freq = 5 if name.startswith("CoOp/") else 20
    assert print_freq == cfg.TRAIN.PRINT_FREQ


@pytest.mark.parametrize("name", PROMPTS)
def test_published_prompt_settings(name):
    node, values = PROMPTS[name]
    cfg = config("--config-file", str(ROOT / "configs" / "trainers" / f"{name}.yaml"))
    assert {key: cfg.TRAINER[node][key] for key in values} == values


# ---- a run ----


def test_banners_and_log(probe, capsys, tmp_path):
    console = sys.stdout
    assert train.main([*probe.argv, "--seed", "3", "--trainer", "CoOp", "DATASET.NUM_SHOTS", "4"]) == 0
    assert sys.stdout is console
    out = capsys.readouterr().out
    log = (tmp_path / "out" / "log.txt").read_text()
    assert out == "Setting fixed seed: 3\n" + log  # the seed line comes before the log exists, as in CoOp
    assert log.startswith(
        "***************\n** Arguments **\n***************\nbackbone: \nconfig_file: \ndataset_config_file: \n"
        "eval_only: False\nhead: \nload_epoch: None\nmodel_dir: \nno_train: False\nopts: ['DATASET.NUM_SHOTS', '4']\n"
        f"output_dir: {tmp_path}/out\nresume: \nroot: \nseed: 3\nsource_domains: None\ntarget_domains: None\n"
        "trainer: CoOp\ntransforms: None\n************\n** Config **\n************\n"
    )
    assert log.endswith("Collecting env info ...\n** System info **\na machine\n\n")
    block = log.split("** Config **\n************\n")[1].split("Collecting env info")[0]
    assert yaml.safe_load(block)["DATASET"]["NUM_SHOTS"] == 4
    assert probe.calls == ["train"]


def test_eval_only_and_no_train(probe):
    assert train.main([*probe.argv, "--eval-only", "--model-dir", "m", "--load-epoch", "0"]) == 0
    assert probe.calls == [("load_model", "m", 0), "test"]
    probe.calls.clear()
    assert train.main([*probe.argv, "--no-train"]) == 0
    assert probe.calls == []


# ---- bad input ----


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["TRAINER.COOP.NCTX", "4"], r"Non-existent key: TRAINER.COOP.NCTX \(do you mean TRAINER.COOP.N_CTX\?\)"),
        (["OPTIM.MAX_EPOCH", "1.5"], "Type mismatch .* OPTIM.MAX_EPOCH"),
        (["OPTIM.MAX_EPOCH"], "odd length"),
        (["OPTIM.MAX_EPOCH", "1", "--seed", "1"], "--seed stands behind a KEY VALUE pair"),
        (["--config-file", "configs/trainers/CoOp/nothing.yaml"], "No such file or directory: .*nothing.yaml"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(probe, capsys, argv, words, tmp_path):
    assert train.main([*probe.argv, *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{words}", line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "OPTIM:\n  MAX_EPOCHS: 3\n",
            r"method.yaml: Non-existent config key: OPTIM.MAX_EPOCHS \(do you mean OPTIM.MAX",
        ),
        ("OPTIM: [unclosed\n", "method.yaml: while parsing"),
        ("OPTIM:\n  LR: fast\n", "method.yaml: Type mismatch"),
    ],
)
def test_bad_yaml_names_the_file(probe, capsys, yaml_file, text, words):
    assert train.main([*probe.argv, "--config-file", yaml_file(text)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


@pytest.mark.parametrize("argv", [["--trainer", "CoOpp"], ["--trainer", "CoOp", "DATASET.NAME", "Caltech"]])
def test_unknown_names_offer_the_near_one(capsys, tmp_path, argv):
    assert train.main(["--output-dir", str(tmp_path), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    near = "CoOp" if "CoOpp" in argv else "Caltech101"
    assert line.endswith(f"(do you mean [{near}]?)")


def test_missing_data_folder_is_one_line(capsys, tmp_path):
    argv = ["--root", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out"), "--trainer", "ZeroshotCLIP"]
    code = train.main([*argv, "--dataset-config-file", str(ROOT / "configs/datasets/caltech101.yaml"), "--eval-only"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert str(tmp_path / "none") in line
    assert not (tmp_path / "out" / "results.json").exists()


def raise_from_library(error):
    """Raise `error` in a frame of a library that is neither ours nor a reader of the user's files."""
    code = compile("raise error", "/usr/lib/site-packages/numpy/core.py", "exec")
    exec(code, {"error": error})


def raise_it(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("INPUT.SIZE must be 48, got 224"),
        OSError("image file is truncated"),
        FileNotFoundError(2, "No such file or directory", "/data/x.jpg"),
        FloatingPointError("Loss is infinite or NaN!"),
        RuntimeError("Error(s) in loading state_dict for Net:\n\tsize mismatch for ctx"),
        OSError("Caught UnidentifiedImageError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
                "last):\n  File ...\nPIL.UnidentifiedImageError: cannot identify image file '/data/x.jpg'"),
    ],
)  # fmt: skip
def test_errors_that_mean_bad_input(probe, capsys, monkeypatch, error):
    probe.on_train = lambda: raise_it(error)
    assert train.main(probe.argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    monkeypatch.setenv("CAPT_DEBUG", "1")
    assert train.main(probe.argv) == 2
    assert "Traceback" in capsys.readouterr().err


def test_worker_errors_are_stripped_of_their_traceback():
    error = OSError("Caught X in worker.\nOriginal Traceback (most recent call last):\n  F\nPIL.Y: cannot read 'a.jpg'")
    assert train._one_line(error) == "cannot read 'a.jpg'"


@pytest.mark.parametrize(
    "run",
    [
        lambda: {}["x"],
        lambda: [][0],
        lambda: raise_it(TypeError("f() takes 1 argument")),
        lambda: raise_it(AssertionError("cannot happen")),
        lambda: raise_it(RuntimeError("shapes do not match")),
        lambda: raise_from_library(ValueError("operands could not be broadcast")),
    ],
)
def test_a_mistake_in_the_code_keeps_its_traceback(probe, run):
    probe.on_train = run
    console = sys.stdout
    with pytest.raises((KeyError, IndexError, TypeError, AssertionError, RuntimeError, ValueError)):
        train.main(probe.argv)
    assert sys.stdout is console


def test_exit_codes_of_the_process(tmp_path):
    command = [sys.executable, "train.py", "--output-dir", str(tmp_path), "--trainer", "Nothing"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
