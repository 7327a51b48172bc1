"""The scripts in examples/ run, and print and leave what they say."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CLIP = ["--backbone", str(ROOT / "assets/glyphs_clip.pt")]

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import tiny_capt  # noqa: E402

import trainers.capt as capt  # noqa: E402


def run(name, *arguments, folder):
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    kept = {key: value for key, value in os.environ.items() if key not in ("SEEDS", "CFG", "BASE", "VARIANT", "OUTPUT")}
    env = {**kept, "OMP_NUM_THREADS": "1", "OPTS": "DATALOADER.NUM_WORKERS 0"}
    result = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_confusions_of_any_model(tmp_path):
    printed = run("confusions_of_any_model.py", folder=tmp_path)
    assert printed.startswith("cup / mug: ")
    resolved, introduced, net = map(
        float, re.search(r"resolved (\S+) %, introduced (\S+) %, net (\S+) %", printed).groups()
    )
    assert resolved > 50
    assert net == pytest.approx(resolved - introduced)


def test_own_base_learner(tmp_path):
    """By the command in its docstring, with files of its own."""
    tiny_capt.draw_pictures(tmp_path / "photos", ["cup", "jug", "vase", "otter"], 8)
    example, out, configs = ROOT / "examples/own_base_learner.py", tmp_path / "run", ROOT / "configs"
    flags = ["--dataset-config-file", configs / "datasets/folder.yaml", "--root", tmp_path / "photos"]
    flags += ["--config-file", configs / "trainers/CAPT/demo.yaml", "--trainer", "CAPT", "--output-dir", out, *CLIP]
    flags += ["INPUT.SIZE", "(48, 48)", "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 2]
    flags += ["TRAINER.CAPT.BASE.NAME", "PromptEnsemble", "TRAINER.CAPT.BASE.MODULE", example]
    run("../train.py", *flags, "TRAINER.CAPT.BASE.OPTIONS.PROMPTS", "['{}.']", folder=ROOT)
    record = json.loads((out / "results.json").read_text())
    assert record["base"] == "PromptEnsemble"
    assert record["config"]["TRAINER"]["CAPT"]["BASE"]["OPTIONS"] == {"PROMPTS": ["{}."]}


def test_the_own_base_learner_averages_its_prompts(tmp_path):
    spec = importlib.util.spec_from_file_location("own_base_learner", ROOT / "examples/own_base_learner.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.save(tiny_capt.clip_state(), tmp_path / "clip.pt")
    prompted = tiny_capt.make_base(tmp_path / "clip.pt").prompted
    for given, prompts in (({}, example.PROMPTS), ({"PROMPTS": ["{}"]}, ["{}"])):
        texts = example.load(prompted, capt.BaseSpec(options=given)).encode_classes(["cup"])
        mean = sum(prompted.text_features([prompt.format("cup")]) for prompt in prompts)
        torch.testing.assert_close(texts, torch.nn.functional.normalize(mean, dim=-1))


def test_the_documents_example_is_the_shipped_one_in_size():
    """docs/BASES.md promises one file of at most 50 lines."""
    assert len((ROOT / "examples/own_base_learner.py").read_text().splitlines()) <= 50


@pytest.mark.slow  # two runs and the report
def test_capt_on_a_folder(tmp_path):
    tiny_capt.draw_pictures(tmp_path / "photos", ["cup", "jug", "vase", "otter"], 8)
    printed = run("capt_on_a_folder.py", "photos", "2", *CLIP, "--size", "(48, 48)", "--epochs", "1", folder=tmp_path)
    assert "most confused: " in printed
    answer = re.search(r"^cup/0.png: (\w+), \d+%$", printed, re.MULTILINE)
    assert answer
    assert answer[1] in ("cup", "jug", "vase", "otter")
