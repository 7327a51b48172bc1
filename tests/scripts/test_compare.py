"""scripts/compare.py on run folders made here: worked figures, protocols kept apart, logs of other repositories."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from capt_tools import compare
from capt_tools.comparison.published import arithmetic_notes, read_published
from capt_tools.comparison.rows import AVERAGE, harmonic, make_rows
from capt_tools.comparison.runs import find_runs

BACKBONE = "assets/small.pt"


def write_run(root: Path, trainer="CoOp", dataset="DTD", subsample="base", seed=1, accuracy=80.0, **changes) -> Path:
    """A finished run in CoOp's layout. `correct` and `base_correct` in `changes` make predictions of 2 classes."""
    tag = changes.pop("tag", "vit" if not changes.get("base") else f"vit_on_{changes['base']}")
    correct, base_correct = changes.pop("correct", None), changes.pop("base_correct", None)
    half = {"base": "train_base", "new": "test_new", "all": "all"}[subsample]
    folder = root / "base2new" / half / dataset.lower() / "shots_16" / trainer / tag / f"seed{seed}"
    folder.mkdir(parents=True)
    record = {
        "format": 1, "commit": "abc123", "trainer": trainer, "base": None, "dataset": dataset, "split": "test",
        "subsample": subsample, "shots": 16, "seed": seed, "backbone": BACKBONE, "input_size": [48, 48],
        "prec": "fp32", "selection": "last_step", "epoch": 5, "num_test": 200, "accuracy": accuracy,
        "mean_per_class_accuracy": accuracy - 1, **changes,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record))
    if correct is not None:
        labels = np.arange(len(correct)) % 2
        arrays = {"labels": labels, "impaths": np.array([f"{dataset}/{subsample}/{i}.jpg" for i in range(len(labels))])}
        arrays["probs"] = np.eye(2)[np.where(correct, labels, 1 - labels)]
        if base_correct is not None:
            arrays["base_probs"] = np.eye(2)[np.where(base_correct, labels, 1 - labels)]
        np.savez(folder / "predictions.npz", **arrays)
    return folder


def bits(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


def table(capsys, *argv: str) -> dict[tuple[str, str, str, str], dict[str, str]]:
    """CSV lines by (method, data set, family, metric)."""
    assert compare.main([*argv, "--format", "csv"]) == 0
    lines = csv.DictReader(io.StringIO(capsys.readouterr().out))
    return {(r["method"], r["dataset"], r["family"], r["metric"]): r for r in lines}


def mean(figures, *key: str) -> float:
    return float(figures[key]["mean"])


def test_means_spread_and_harmonic_mean(tmp_path, capsys):
    for seed, base, new in ((1, 80.0, 60.0), (2, 84.0, 70.0)):
        write_run(tmp_path, seed=seed, accuracy=base)
        write_run(tmp_path, seed=seed, accuracy=new, subsample="new")
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "CoOp", "DTD", "accuracy", "base") == 82.0
    assert float(figures["CoOp", "DTD", "accuracy", "new"]["std"]) == 5.0
    # of the means 82 and 65, not the mean of the seeds' 68.57 and 76.36
    assert mean(figures, "CoOp", "DTD", "accuracy", "HM") == pytest.approx(2 * 82 * 65 / 147, abs=1e-4)
    assert mean(figures, "CoOp", "DTD", "mean per-class accuracy", "base") == 81.0
    assert figures["CoOp", "DTD", "accuracy", "HM"]["values"] == "68.5714 76.3636"


def test_average_row_is_the_harmonic_mean_of_averages(tmp_path, capsys):
    for dataset, base, new in (("DTD", 90.0, 50.0), ("EuroSAT", 50.0, 90.0)):
        write_run(tmp_path, dataset=dataset, accuracy=base)
        write_run(tmp_path, dataset=dataset, accuracy=new, subsample="new")
    write_run(tmp_path, "MaPLe", accuracy=70.0)
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "CoOp", AVERAGE, "accuracy", "HM") == 70.0
    assert ("MaPLe", AVERAGE, "accuracy", "base") not in figures  # it has one data set only
    compare.main([str(tmp_path)])
    assert "note: MaPLe has no average: it lacks EuroSAT" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [{"shots": 4}, {"backbone": "ViT-B/16"}, {"prec": "fp16"}, {"selection": "best_val"}, {"input_size": [224, 224]}],
)
def test_protocols_never_share_a_row(tmp_path, capsys, changes):
    write_run(tmp_path / "a", accuracy=80.0)
    write_run(tmp_path / "b", accuracy=60.0, seed=2, **changes)
    figures = table(capsys, str(tmp_path))
    methods = {method for method, *_ in figures}
    assert len(methods) == 2
    assert sorted(mean(figures, method, "DTD", "accuracy", "base") for method in methods) == [60.0, 80.0]


def test_configurations_share_a_row_only_where_each_data_set_has_one(tmp_path):
    write_run(tmp_path / "a", tag="vit_b16_ctxv1", epoch=200)
    write_run(tmp_path / "a", tag="vit_b16_ep50_ctxv1", epoch=50, dataset="ImageNet")
    rows = make_rows(find_runs([tmp_path / "a"])[0], ("base", "new"))
    assert [row.label for row in rows] == ["CoOp"]
    write_run(tmp_path / "a", tag="vit_b16", epoch=200)
    labels = {row.label for row in make_rows(find_runs([tmp_path / "a"])[0], ("base", "new"))}
    assert labels == {
        "CoOp [vit_b16, epoch 200]", "CoOp [vit_b16_ctxv1, epoch 200]", "CoOp [vit_b16_ep50_ctxv1, epoch 50]"
    }  # fmt: skip


def test_base_learners_are_rows_of_their_own(tmp_path, capsys):
    write_run(tmp_path, "CAPT", base="ZeroshotCLIP")
    write_run(tmp_path, "CAPT", base="CoOp", accuracy=85.0)
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "CAPT on CoOp", "DTD", "accuracy", "base") == 85.0
    assert mean(figures, "CAPT on ZeroshotCLIP", "DTD", "accuracy", "base") == 80.0


def test_same_place_with_another_result_is_refused(tmp_path, capsys):
    write_run(tmp_path / "a", accuracy=80.0)
    write_run(tmp_path / "b", accuracy=81.0)
    assert compare.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "two runs of CoOp on DTD (base, seed 1) differ" in line


def test_confusion_against_zero_shot_pools_base_and_new(tmp_path, capsys):
    # Zero-shot: 4 errors on base, 1 on new. A pair needs 3 errors, so the one of the new classes does not count.
    write_run(tmp_path, "ZeroshotCLIP", correct=bits("00001111"), accuracy=50.0)
    write_run(tmp_path, "ZeroshotCLIP", correct=bits("01111111"), accuracy=87.5, subsample="new")
    # CoOp: 3 of the 4 resolved, 1 introduced on base; on new everything right, which changes nothing
    write_run(tmp_path, correct=bits("11101110"), accuracy=75.0)
    write_run(tmp_path, correct=bits("11111111"), accuracy=100.0, subsample="new")
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "CoOp", "DTD", "confusion", "resolved") == 75.0
    assert mean(figures, "CoOp", "DTD", "confusion", "introduced") == 25.0
    assert mean(figures, "CoOp", "DTD", "confusion", "net") == 50.0
    assert ("ZeroshotCLIP", "DTD", "confusion", "net") not in figures
    compare.main([str(tmp_path)])
    assert "note: confusion of CoOp: against ZeroshotCLIP" in capsys.readouterr().out


def test_confusion_of_capt_is_against_its_own_base(tmp_path, capsys):
    for part in ("base", "new"):
        write_run(
            tmp_path,
            "CAPT",
            base="CoOp",
            subsample=part,
            correct=bits("1100"),
            base_correct=bits("0001"),
            accuracy=50.0,
        )
    figures = table(capsys, str(tmp_path))
    # per half 3 errors, 2 resolved, 1 introduced
    assert mean(figures, "CAPT on CoOp", "DTD", "confusion", "resolved") == pytest.approx(66.67)
    assert mean(figures, "CAPT on CoOp", "DTD", "confusion", "introduced") == pytest.approx(33.33)


def test_images_are_matched_by_path(tmp_path, capsys):
    for part in ("base", "new"):
        write_run(tmp_path, "ZeroshotCLIP", correct=bits("000111"), accuracy=50.0, subsample=part)
        folder = write_run(tmp_path, correct=bits("111111"), accuracy=100.0, subsample=part)
        with np.load(folder / "predictions.npz") as archive:
            arrays = {key: archive[key][::-1] for key in archive.files}  # another order of the same images
        np.savez(folder / "predictions.npz", **arrays)
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "CoOp", "DTD", "confusion", "net") == 100.0


def test_other_images_are_refused(tmp_path, capsys):
    for part in ("base", "new"):
        write_run(tmp_path, "ZeroshotCLIP", correct=bits("000111"), accuracy=50.0, subsample=part)
        write_run(tmp_path, correct=bits("1111"), accuracy=100.0, subsample=part)
    assert compare.main([str(tmp_path)]) == 2
    assert "were tested on different images" in capsys.readouterr().err


def test_runs_below_zero_shot_and_wide_spreads_are_flagged(tmp_path, capsys):
    write_run(tmp_path, "ZeroshotCLIP", accuracy=70.0)
    write_run(tmp_path, accuracy=60.0)
    write_run(tmp_path, accuracy=80.0, seed=2)
    assert compare.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "70.00 ± 10.00!~" in out
    assert "note: ! CoOp lies below zero-shot CLIP: DTD base (seed 1)" in out
    assert "note: ~ the spread over seeds is above 3 points" in out


def test_seeds_found_and_missing_and_commit(tmp_path, capsys):
    write_run(tmp_path, "ZeroshotCLIP")
    write_run(tmp_path)
    write_run(tmp_path, "MaPLe", seed=2, accuracy=81.0)
    write_run(tmp_path, "MaPLe", accuracy=81.0)
    compare.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "CoOp: 16 shots, small.pt 48 px, fp32; seeds 1, missing DTD base seed 2; DTD new seed 1 2\n" in out
    assert "ZeroshotCLIP: zero-shot, small.pt 48 px, fp32; seeds 1\n" in out
    assert "data: DTD (base 200 test images)\n" in out
    assert "code: abc123\n" in out
    compare.main([str(tmp_path), "--seeds", "1"])
    assert "CoOp: 16 shots, small.pt 48 px, fp32; seeds 1, missing DTD new seed 1\n" in capsys.readouterr().out


def test_best_is_bold_and_published_rows_do_not_compete(tmp_path, capsys):
    write_run(tmp_path, dataset="EuroSAT", accuracy=80.0)
    write_run(tmp_path, "MaPLe", dataset="EuroSAT", accuracy=70.0)
    assert compare.main([str(tmp_path), "--format", "markdown", "--published"]) == 0
    out = capsys.readouterr().out
    assert "**80.00**" in out
    assert "**70.00**" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("| PromptSRC *published* ")]
    assert [cell.strip() for cell in line.split("|")[2:5]] == ["92.90", "73.90", "82.32"]
    assert "**92.90**" not in out


def test_latex_has_booktabs_and_comments(tmp_path, capsys):
    write_run(tmp_path, dataset="EuroSAT")
    write_run(tmp_path, dataset="EuroSAT", subsample="new", accuracy=60.0)
    write_run(tmp_path, "Prompt_SRC", dataset="EuroSAT", accuracy=70.0)
    assert compare.main([str(tmp_path), "--format", "latex"]) == 0
    out = capsys.readouterr().out
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\textbf{80.00}", r"Prompt\_SRC", r"\multicolumn{3}{c}{"):
        assert word in out
    text, inside = [], False
    for line in out.splitlines():
        inside = inside or line.startswith(r"\begin{tabular}")
        text += [] if inside or not line else [line]
        inside = inside and not line.startswith(r"\end{tabular}")
    assert all(line.startswith("%") for line in text)


def test_paired_tests(tmp_path, capsys):
    coop, maple = [80.0, 82.0, 81.0], [83.0, 84.0, 85.5]
    for seed, (a, b) in enumerate(zip(coop, maple, strict=True), start=1):
        write_run(tmp_path, seed=seed, accuracy=a)
        write_run(tmp_path, "MaPLe", seed=seed, accuracy=b)
    write_run(tmp_path, "MaPLe", seed=4, accuracy=10.0)  # CoOp has no such seed
    assert compare.main([str(tmp_path), "--against", "CoOp"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MaPLe  ")]
    t, w = stats.ttest_rel(maple, coop).pvalue, stats.wilcoxon(maple, coop).pvalue
    assert line.split() == ["MaPLe", "base", "3", "+3.17", f"{t:.4f}", f"{w:.4f}"]


def test_paired_tests_against_nothing(tmp_path, capsys):
    write_run(tmp_path)
    assert compare.main([str(tmp_path), "--against", "CoCoOp"]) == 2
    assert "no method 'CoCoOp' to compare against; there are: CoOp" in capsys.readouterr().err


def test_one_pair_gives_no_p_value(tmp_path, capsys):
    write_run(tmp_path)
    write_run(tmp_path, "MaPLe", accuracy=81.0)
    assert compare.main([str(tmp_path), "--against", "CoOp"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MaPLe  ")]
    assert line.split() == ["MaPLe", "base", "1", "+1.00", "-", "-"]


LOG = """\
***************
** Arguments **
***************
eval_only: {eval_only}
load_epoch: {load_epoch}
************
** Config **
************
DATASET:
  NAME: DescribableTextures
  NUM_SHOTS: 16
  SUBSAMPLE_CLASSES: {subsample}
INPUT:
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  SIZE: (224, 224)
MODEL:
  BACKBONE:
    NAME: ViT-B/16
OPTIM:
  MAX_EPOCH: 5
SEED: 1
TEST:
  FINAL_MODEL: last_step
  SPLIT: test
TRAINER:
  MAPLE:
    PREC: fp16
  NAME: MaPLe
{end}
=> result
* total: 1,234
* accuracy: {accuracy}%
"""


def test_logs_of_other_repositories(tmp_path, capsys):
    base = tmp_path / "base2new/train_base/dtd/shots_16/MaPLe/vit/seed1"
    new = tmp_path / "base2new/test_new/dtd/shots_16/MaPLe/vit/seed1"
    broken = tmp_path / "base2new/train_base/dtd/shots_16/MaPLe/vit/seed2"
    for folder in (base, new, broken):
        folder.mkdir(parents=True)
    first = LOG.format(
        eval_only="False", load_epoch="None", subsample="base", end="Collecting env info ...\n{}", accuracy="80.4"
    )
    (base / "log.txt").write_text(first.replace("{}", "Finished training"))
    (broken / "log.txt").write_text(first.replace("{}", "epoch [1/5]"))
    second = LOG.format(
        eval_only="True", load_epoch="5", subsample="new", end="Loading trainer: MaPLe", accuracy="59.18"
    )
    (new / "log.txt").write_text(second)
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "MaPLe", "DescribableTextures", "accuracy", "base") == 80.4
    assert mean(figures, "MaPLe", "DescribableTextures", "accuracy", "HM") == pytest.approx(
        harmonic(80.4, 59.18), abs=1e-4
    )
    assert ("MaPLe", "DescribableTextures", "mean per-class accuracy", "base") not in figures
    compare.main([str(tmp_path)])
    out = capsys.readouterr().out
    assert f"note: unfinished, left out: {broken}" in out
    assert "DescribableTextures (base 1,234, new 1,234 test images)" in out


def test_log_of_capt_names_its_base(tmp_path, capsys):
    text = LOG.format(eval_only="False", load_epoch="None", subsample="base", end="Finish training", accuracy="80.4")
    text = text.replace("TRAINER:\n", "TRAINER:\n  CAPT:\n    BASE:\n      NAME: CoOp\n    PREC: fp32\n").replace(
        ": MaPLe", ": CAPT"
    )
    text = text.replace("Finish training", "Loading trainer: CAPT\nFinish training")
    folder = tmp_path / "base2new/train_base/dtd/shots_16/CAPT/vit_on_CoOp/seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(text)
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "CAPT on CoOp", "DescribableTextures", "accuracy", "base") == 80.4


def test_all_classes_have_a_table_of_their_own(tmp_path, capsys):
    write_run(tmp_path, subsample="all", accuracy=66.0)
    write_run(tmp_path, accuracy=80.0)
    figures = table(capsys, str(tmp_path))
    assert mean(figures, "CoOp", "DTD", "accuracy", "accuracy") == 66.0
    assert mean(figures, "CoOp", "DTD", "accuracy", "base") == 80.0


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, "no finished run below"),
        (lambda root: (root / "results.json").write_text("{"), "is no valid JSON"),
        (lambda root: (root / "results.json").write_text('{"seed": 1}'), "has no trainer, dataset, accuracy"),
    ],
)
def test_bad_folders_are_one_line(tmp_path, capsys, prepare, words):
    prepare(tmp_path)
    assert compare.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_missing_folder_is_one_line(capsys):
    assert compare.main(["/nonexistent"]) == 2
    assert capsys.readouterr().err == "error: /nonexistent is not a folder\n"


def test_published_table_is_complete_and_its_mistakes_are_computed():
    figures, about = read_published()
    assert list(figures) == ["CLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC", "PromptKD", "DPC", "CAPT"]
    assert all(len(entry) == 12 for entry in figures.values())
    assert figures["CAPT"][AVERAGE] == {"base": 87.41, "new": 80.90, "HM": 83.90}
    assert all(source.count("/") >= 1 for source in about.values())
    assert arithmetic_notes() == [
        "published PromptKD: StanfordCars HM printed 83.13, its base and new give 83.08",
        "published PromptKD: UCF101 HM printed 86.10, its base and new give 85.83",
        "published CAPT: average new printed 80.90, its rows give 80.73",
        "published CAPT: Average HM printed 83.90, its base and new give 84.03",
    ]
