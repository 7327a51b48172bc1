"""The shell scripts: they parse, and DRY_RUN shows the command and the output folder that CoOp's users expect."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.sh")) + [ROOT / ".ci" / "run"]
BASE = "output/base2new/train_base"
NEW = "output/base2new/test_new"

# script, arguments, variables, folder of the first run, folder of its model (None: it trains)
GOLDEN = [
    ("coop/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1", None),
    ("coop/base2new_train", "imagenet 2", {}, f"{BASE}/imagenet/shots_16/CoOp/vit_b16_ep50_ctxv1/seed2", None),
    ("coop/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1", 200),
    ("cocoop/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_16/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1/seed1", None),
    ("cocoop/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1/seed1", 10),
    ("maple/base2new_train", "dtd 3", {}, f"{BASE}/dtd/shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx/seed3", None),
    ("maple/base2new_test", "dtd 3", {}, f"{NEW}/dtd/shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx/seed3", 5),
    ("ivlp/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_16/IVLP/vit_b16_c2_ep5_batch4_2+2ctx/seed1", None),
    ("ivlp/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/IVLP/vit_b16_c2_ep5_batch4_2+2ctx/seed1", 5),
    ("vpt/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_16/VPT/vit_b16_c2_ep5_batch4_4/seed1", None),
    ("vpt/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/VPT/vit_b16_c2_ep5_batch4_4/seed1", 5),
    (
        "promptsrc/base2new_test",
        "dtd 1",
        {},
        f"{NEW}/dtd/shots_16/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx/seed1",
        20,
    ),
    ("promptkd/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_0/PromptKD/vit_b16_c2_ep20_batch8_4+4ctx/seed1", None),
    ("promptkd/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_0/PromptKD/vit_b16_c2_ep20_batch8_4+4ctx/seed1", 20),
    (
        "promptkd/xd_train",
        "dtd 1",
        {},
        "output/dtd/PromptKD/vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets_0shots/seed1",
        None,
    ),
    (
        "promptsrc/few_shot",
        "dtd 4",
        {},
        "output/dtd/PromptSRC/vit_b16_c2_ep50_batch4_4+4ctx_few_shot_4shots/seed1",
        None,
    ),
    (
        "promptsrc/xd_train",
        "imagenet 1",
        {},
        "output/imagenet/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets_16shots/seed1",
        None,
    ),
    ("cocoop/xd_train", "2", {}, "output/imagenet/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1_16shots/seed2", None),
    ("cocoop/xd_test", "dtd 2", {}, "output/evaluation/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1_16shots/dtd/seed2", 10),
    (
        "maple/xd_test",
        "dtd 1",
        {},
        "output/evaluation/MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets_16shots/dtd/seed1",
        2,
    ),
    ("coop/main", "dtd rn50 end 16 4 False", {}, "output/dtd/CoOp/rn50_4shots/nctx16_cscFalse_ctpend/seed1", None),
    (
        "coop/eval",
        "dtd rn50_ep50",
        {},
        "output/evaluation/CoOp/rn50_ep50_16shots/nctx16_cscFalse_ctpend/dtd/seed1",
        50,
    ),
    ("coop/few_shot", "dtd 4", {"CFG": "rn50"}, "output/dtd/CoOp/rn50_4shots/seed1", None),
    ("zsclip/zeroshot", "dtd rn50", {}, "output/ZeroshotCLIP/rn50/dtd", None),
    ("coop/zeroshot", "dtd vit_b16", {}, "output/ZeroshotCLIP/vit_b16/dtd", None),
    ("zsclip/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_16/ZeroshotCLIP/vit_b16/seed1", None),
    ("zsclip/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/ZeroshotCLIP/vit_b16/seed1", None),
    ("linearprobe/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_16/LinearProbe/vit_b16/seed1", None),
    ("clipadapter/xd_train", "1", {}, "output/imagenet/CLIPAdapter/vit_b16_16shots/seed1", None),
    ("tipadapter/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/TipAdapter/vit_b16/seed1", 1),
    ("tipadapterf/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/TipAdapterF/vit_b16/seed1", 20),
    ("tipadapterf/few_shot", "dtd 4", {}, "output/dtd/TipAdapterF/vit_b16_4shots/seed1", None),
    ("capt/base2new_train", "dtd 1", {}, f"{BASE}/dtd/shots_16/CAPT/vit_b16_ep20_on_ZeroshotCLIP/seed1", None),
    ("capt/base2new_test", "dtd 1", {}, f"{NEW}/dtd/shots_16/CAPT/vit_b16_ep20_on_ZeroshotCLIP/seed1", 20),
    ("capt/few_shot", "dtd 4", {"SEEDS": "7"}, "output/dtd/CAPT/vit_b16_ep20_on_ZeroshotCLIP_4shots/seed7", None),
    (
        "coop/base2new_train",
        "dtd 1",
        {"SHOTS": "4", "CFG": "vit_b16", "OUTPUT": "elsewhere"},
        "elsewhere/base2new/train_base/dtd/shots_4/CoOp/vit_b16/seed1",
        None,
    ),
]


@functools.cache
def checkout() -> Path:
    """A checkout without runs: in the real one, what is done already would be skipped."""
    folder = Path(tempfile.mkdtemp(prefix="checkout-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("scripts", "configs", "capt_tools"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def dry_run(script: str, arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    command = ["bash", str(checkout() / "scripts" / f"{script}.sh"), *arguments.split()]
    env = {**keep, "DRY_RUN": "1", "PYTHON": "python", **variables}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def commands(output: str) -> list[list[str]]:
    return [shlex.split(line) for line in output.splitlines() if line.startswith("python train.py")]


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_script_parses(script):
    result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("script", "arguments", "variables", "folder", "epoch"), GOLDEN)
def test_folder_and_epoch(script, arguments, variables, folder, epoch):
    result = dry_run(script, arguments, **variables)
    assert result.returncode == 0, result.stderr
    command = commands(result.stdout)[0]
    assert option(command, "--output-dir") == folder
    assert option(command, "--load-epoch") == (None if epoch is None else str(epoch))
    if epoch is not None:
        assert "--eval-only" in command
    assert (ROOT / option(command, "--config-file")).is_file()
    assert (ROOT / option(command, "--dataset-config-file")).is_file()


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "ivlp", "vpt", "promptsrc", "capt"])
@pytest.mark.parametrize("protocol", ["base2new", "xd"])
def test_test_script_reads_what_the_training_script_writes(method, protocol):
    if protocol == "xd":
        trained = commands(dry_run(f"{method}/xd_train", "imagenet 3").stdout)[-1]
    else:
        trained = commands(dry_run(f"{method}/base2new_train", "dtd 3").stdout)[-1]
    tested = commands(dry_run(f"{method}/{protocol}_test", "dtd 3").stdout)[-1]
    assert option(tested, "--model-dir") == option(trained, "--output-dir")
    assert option(tested, "--config-file") == option(trained, "--config-file")
    subsets = (option(trained, "DATASET.SUBSAMPLE_CLASSES"), option(tested, "DATASET.SUBSAMPLE_CLASSES"))
    assert subsets == (("base", "new") if protocol == "base2new" else (None, None))


def test_every_dry_run_of_a_method_script_starts_train_py():
    folders = ["capt", "cocoop", "coop", "ivlp", "maple", "promptsrc", "vpt", "zsclip"]
    folders += ["clipadapter", "linearprobe", "tipadapter", "tipadapterf"]
    arguments = {"main": "dtd rn50 end 16 1 False", "eval": "dtd rn50", "zeroshot": "dtd rn50", "few_shot": "dtd 1"}
    for script in sorted(path for folder in folders for path in (ROOT / "scripts" / folder).glob("*2new*.sh")):
        result = dry_run(f"{script.parent.name}/{script.stem}", arguments.get(script.stem, "dtd 1"))
        assert len(commands(result.stdout)) == 1, f"{script}: {result.stderr}"


def test_flags_stand_before_the_first_key():
    command = commands(dry_run("coop/base2new_test", "dtd 1", SIZE="(48, 48)", BACKBONE="a b.pt").stdout)[0]
    first_key = next(i for i, word in enumerate(command) if word.startswith("DATASET."))
    assert not [word for word in command[first_key:] if word.startswith("--")]
    assert option(command, "--backbone") == "a b.pt"
    assert option(command, "INPUT.SIZE") == "(48, 48)"


def test_works_from_any_folder(tmp_path):
    here, there = dry_run("maple/base2new_train", "dtd 1"), dry_run("maple/base2new_train", "dtd 1", cwd=tmp_path)
    assert here.stdout == there.stdout
    assert commands(here.stdout)


def test_capt_trains_its_base_first_and_names_its_run():
    first, second = commands(dry_run("capt/base2new_train", "dtd 1", BASE="CoOp").stdout)
    base = f"{BASE}/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1"
    assert option(first, "--trainer") == "CoOp"
    assert option(first, "--output-dir") == base
    assert option(second, "--output-dir") == f"{BASE}/dtd/shots_16/CAPT/vit_b16_ep20_on_CoOp/seed1"
    assert option(second, "TRAINER.CAPT.BASE.NAME") == "CoOp"
    assert option(second, "TRAINER.CAPT.BASE.DIR") == base
    assert option(second, "TRAINER.CAPT.BASE.EPOCH") == "200"


def test_capt_does_not_train_its_base_again(tmp_path):
    base = tmp_path / "base2new/train_base/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1"
    (base / "prompt_learner").mkdir(parents=True)
    (base / "results.json").write_text("{}")
    (base / "prompt_learner" / "checkpoint").write_text("model.pth.tar-7\n")
    (only,) = commands(dry_run("capt/base2new_train", "dtd 1", BASE="CoOp", OUTPUT=str(tmp_path)).stdout)
    assert option(only, "TRAINER.CAPT.BASE.DIR") == str(base)
    assert option(only, "TRAINER.CAPT.BASE.EPOCH") == "7"


def test_zero_shot_base_needs_no_folder():
    (only,) = commands(dry_run("capt/base2new_train", "dtd 1").stdout)
    assert option(only, "TRAINER.CAPT.BASE.NAME") == "ZeroshotCLIP"
    assert option(only, "TRAINER.CAPT.BASE.DIR") is None


def test_skip_looks_at_results_not_at_the_folder(tmp_path):
    folder = tmp_path / "base2new/train_base/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("Loading trainer: CoOp\n")
    assert commands(dry_run("coop/base2new_train", "dtd 1", OUTPUT=str(tmp_path)).stdout)
    (folder / "results.json").write_text("{}")
    result = dry_run("coop/base2new_train", "dtd 1", OUTPUT=str(tmp_path))
    assert result.stdout == f"Results are available in {folder} (skip)\n"


@pytest.mark.parametrize("ending", ["\n", ""])
def test_load_epoch_comes_from_the_checkpoint_pointer(tmp_path, ending):
    pointer = tmp_path / "base2new/train_base/dtd/shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx/seed1/Learner/checkpoint"
    pointer.parent.mkdir(parents=True)
    pointer.write_text("model.pth.tar-3" + ending)
    (command,) = commands(dry_run("maple/base2new_test", "dtd 1", OUTPUT=str(tmp_path)).stdout)
    assert option(command, "--load-epoch") == "3"
    (command,) = commands(dry_run("maple/base2new_test", "dtd 1", OUTPUT=str(tmp_path), LOADEP="1").stdout)
    assert option(command, "--load-epoch") == "1"


def test_epochs_reach_training_and_testing():
    (trained,) = commands(dry_run("maple/base2new_train", "dtd 1", EPOCHS="2").stdout)
    (tested,) = commands(dry_run("maple/base2new_test", "dtd 1", EPOCHS="2").stdout)
    assert option(trained, "OPTIM.MAX_EPOCH") == "2"
    assert option(tested, "--load-epoch") == "2"


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "words"),
    [
        ("coop/base2new_train", "dtd", {}, "usage: bash .*base2new_train.sh DATASET SEED"),
        ("coop/base2new_train", "nothing 1", {}, "no such data set: configs/datasets/nothing.yaml"),
        ("coop/base2new_train", "dtd 1", {"CFG": "none"}, "no such configuration: configs/trainers/CoOp/none.yaml"),
        ("coop/base2new_test", "dtd 1", {"DRY_RUN": "0", "OUTPUT": "/nonexistent"}, "no trained model in /nonexistent"),
        ("run_all", "base2old", {}, "unknown protocol base2old"),
        ("run_all", "", {"METHODS": "copo"}, "unknown method copo"),
    ],
)
def test_bad_input_is_one_line(script, arguments, variables, words):
    result = dry_run(script, arguments, **variables)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert re.search(words, result.stderr)


def test_run_all_visits_every_method_data_set_and_seed():
    result = dry_run("run_all", "", METHODS="zsclip capt:CoOp", DATASETS="dtd eurosat", SEEDS="1 2")
    assert result.returncode == 0, result.stderr
    folders = {option(command, "--output-dir") for command in commands(result.stdout)}
    expected = {
        f"{part}/{dataset}/shots_16/{method}/seed{seed}"
        for part in (BASE, NEW)
        for dataset in ("dtd", "eurosat")
        for method in ("ZeroshotCLIP/vit_b16", "CAPT/vit_b16_ep20_on_CoOp")
        for seed in (1, 2)
    }
    expected |= {
        f"{BASE}/{dataset}/shots_16/CoOp/vit_b16_ctxv1/seed{seed}" for dataset in ("dtd", "eurosat") for seed in (1, 2)
    }
    assert folders == expected


def test_run_all_goes_on_after_a_failure_and_reports_it(tmp_path):
    result = dry_run(
        "run_all",
        "",
        DRY_RUN="0",
        METHODS="coop cocoop",
        DATASETS="dtd",
        SEEDS="1",
        PYTHON="false",
        OUTPUT=str(tmp_path),
    )
    assert result.returncode == 1
    assert "2 failed:" in result.stderr
    assert "cocoop dtd seed 1: scripts/cocoop/base2new_train.sh dtd 1" in result.stderr


def test_quickstart_runs_every_method_on_the_demo():
    result = dry_run("quickstart", "")
    assert result.returncode == 0, result.stderr
    found = commands(result.stdout)
    folders = {option(command, "--output-dir") for command in found}
    for method in (
        "ZeroshotCLIP/demo",
        "CoOp/demo",
        "LinearProbe/demo",
        "CLIPAdapter/demo",
        "TipAdapter/demo",
        "TipAdapterF/demo",
        "CAPT/demo_on_ZeroshotCLIP",
        "CAPT/demo_on_CoOp",
        "CAPT/demo_on_MaPLe",
    ):
        for part in ("train_base", "test_new"):
            assert f"output/quickstart/base2new/{part}/glyphs/shots_16/{method}/seed1" in folders
    assert {option(command, "--backbone") for command in found} == {"assets/glyphs_clip.pt"}
    assert {option(command, "INPUT.SIZE") for command in found} == {"(48, 48)"}
    assert result.stdout.splitlines()[-1] == "python scripts/compare.py output/quickstart"


@pytest.mark.parametrize("script", ["quickstart", "test"])
def test_old_or_missing_python_is_refused_in_one_line(script, tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for python, words in ((str(old), "python 3.10 or newer is needed"), ("/nonexistent/python", "not found")):
        result = dry_run(script, "", DRY_RUN="0", PYTHON=python, VENV=str(tmp_path / "venv"))
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert words in line
    assert not (tmp_path / "venv").exists()


def test_run_all_spreads_seeds_over_devices(tmp_path):
    result = dry_run("run_all", "", METHODS="coop", DATASETS="dtd", SEEDS="1 2 3", GPUS="0 1")
    assert result.returncode == 0, result.stderr
    folders = [option(command, "--output-dir") for command in commands(result.stdout)]
    assert len(folders) == len(set(folders)) == 6
    result = dry_run("run_all", "xd", METHODS="coop", DATASETS="dtd", GPUS="0 1")
    assert result.returncode == 2
    assert "leave GPUS out" in result.stderr


def test_run_all_tests_zero_shot_clip_once_per_data_set_outside_base_to_new():
    result = dry_run("run_all", "few_shot", METHODS="zsclip", DATASETS="dtd", SEEDS="1")
    assert result.returncode == 0, result.stderr
    assert [option(command, "--output-dir") for command in commands(result.stdout)] == [
        "output/ZeroshotCLIP/vit_b16/dtd"
    ]


def test_ablation_tells_its_variants_apart():
    result = dry_run("capt/ablate", "dtd 1", VARIANTS="full no_sem", BASE="CoOp")
    assert result.returncode == 0, result.stderr
    found = commands(result.stdout)
    capt = [command for command in found if option(command, "--trainer") == "CAPT"]
    names = [option(command, "--output-dir").split("/")[-2] for command in capt]
    assert names == ["vit_b16_ep20_on_CoOp_full"] * 2 + ["vit_b16_ep20_on_CoOp_no_sem"] * 2
    assert [option(command, "TRAINER.CAPT.SEM.ON") for command in capt] == [None, None, "False", "False"]
    base = [command for command in found if option(command, "--trainer") == "CoOp"]
    assert {option(command, "--output-dir").split("/")[-2] for command in base} == {"vit_b16_ctxv1"}
    assert all(option(command, "TRAINER.CAPT.SEM.ON") is None for command in base)
    assert "no variant nothing" in dry_run("capt/ablate", "dtd", VARIANTS="nothing").stderr


def test_literal_variant_is_the_published_preset():
    from trainers.capt.config import PUBLISHED

    result = dry_run("capt/ablate", "dtd 1", VARIANTS="literal", BASE="CoOp")
    assert result.returncode == 0, result.stderr
    capt = next(command for command in commands(result.stdout) if option(command, "--trainer") == "CAPT")
    assert {key: option(capt, f"TRAINER.CAPT.{key}") for key in PUBLISHED} == {k: str(v) for k, v in PUBLISHED.items()}


def test_promptkd_tests_base_classes_as_val_and_new_ones_as_test():
    for script, split in (("base2new_train", "val"), ("base2new_test", "test")):
        (command,) = commands(dry_run(f"promptkd/{script}", "food101 1", TEACHER_DIR="t", TEACHER="l.pt").stdout)
        assert option(command, "TEST.SPLIT") == split
        assert option(command, "DATASET.NUM_SHOTS") == "0"
        assert option(command, "TRAINER.PROMPTKD.TEACHER_DIR") == "t"
        assert option(command, "TRAINER.PROMPTKD.TEACHER_NAME") == "l.pt"
        assert option(command, "TRAINER.PROMPTKD.KD_WEIGHT") is None  # the yaml's 1000
    (command,) = commands(dry_run("promptkd/base2new_train", "dtd 1").stdout)
    assert option(command, "TRAINER.PROMPTKD.KD_WEIGHT") == "200.0"


def test_a_base_made_elsewhere_is_taken_as_it_is():
    (only,) = commands(dry_run("capt/base2new_train", "dtd 1", BASE="MaPLe", BASE_DIR="theirs").stdout)
    assert option(only, "TRAINER.CAPT.BASE.NAME") == "MaPLe"
    assert option(only, "TRAINER.CAPT.BASE.DIR") == "theirs"


@pytest.mark.parametrize("protocol", ["honest", "published"])
def test_reproduce_chains_teacher_student_and_capt(protocol):
    result = dry_run("capt/reproduce", f"dtd 2 --protocol {protocol}")
    assert result.returncode == 0, result.stderr
    teacher, student, student_new, capt, capt_new = commands(result.stdout)
    assert [option(c, "--trainer") for c in (teacher, student, capt)] == ["PromptSRC", "PromptKD", "CAPT"]
    assert option(teacher, "--backbone") == "ViT-L/14"
    assert option(student, "--backbone") is None
    run = option(teacher, "--output-dir")
    assert run.startswith(f"output/reproduce/{protocol}/")
    assert {option(c, "TRAINER.PROMPTKD.TEACHER_DIR") for c in (student, student_new)} == {run}
    assert {option(c, "TRAINER.CAPT.BASE.TEACHER_DIR") for c in (capt, capt_new)} == {run}
    assert (
        option(capt, "TRAINER.CAPT.BASE.DIR") == option(student, "--output-dir") == option(student_new, "--model-dir")
    )
    assert option(capt_new, "--model-dir") == option(capt, "--output-dir")
    is_published = protocol == "published"
    assert option(capt, "TRAINER.CAPT.BANK.SHOTS") == ("-1" if is_published else None)
    assert option(capt, "TRAINER.CAPT.SELECTION") == ("test" if is_published else None)
    assert {option(c, "TEST.FINAL_MODEL") for c in (student, capt)} == {"best_val" if is_published else None}
    assert {option(c, "--load-epoch") for c in (student_new, capt_new)} == {None if is_published else "20"}
    assert ("choose their epoch on the base classes' test images" in result.stdout) == is_published


def test_reproduce_knows_two_protocols():
    result = dry_run("capt/reproduce", "dtd 1 --protocol other")
    assert result.returncode == 2
    assert "usage: " in result.stderr
