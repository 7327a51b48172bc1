"""parse_test_res.py: CoOp's output to the letter, and logs that the family's copies cannot read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import parse_test_res

CONFIG = """\
************
** Config **
************
DATASET:
  NAME: Caltech101
  NUM_SHOTS: 16
  SUBSAMPLE_CLASSES: {subsample}
SEED: {seed}
TRAINER:
  NAME: CoOp
"""
RESULT = """\
Evaluate on the *test* set
=> result
* total: 2,465
* correct: 2,301
* accuracy: {accuracy}%
* error: 6.7%
* macro_f1: 91.4%
"""


def write_log(folder: Path, accuracy: str, *, end="Finish training", subsample="base", seed=1, name="log.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(subsample=subsample, seed=seed) + (f"{end}\n" if end else "")
    (folder / name).write_text(text + RESULT.format(accuracy=accuracy) + "Elapsed: 0:00:18\n")


def test_output_is_coops(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(Path("exp/seed1"), "93.3", seed=1)
    write_log(Path("exp/seed2"), "94.1", seed=2)
    assert parse_test_res.main(["exp"]) == 0
    out, err = capsys.readouterr()
    # mean 93.7, population deviation 0.4
    assert out == (
        "Parsing files in exp\n"
        "file: exp/seed1/log.txt. accuracy: 93.30%. \n"
        "file: exp/seed2/log.txt. accuracy: 94.10%. \n"
        "===\n"
        "Summary of directory: exp\n"
        "* accuracy: 93.70% +- 0.40%\n"
        "===\n"
    )
    assert err == "note: seeds found in exp: 1 2\n"


def test_multi_exp_output_is_coops(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(Path("all/a/seed1"), "90.0")
    write_log(Path("all/b/seed1"), "80.0")
    assert parse_test_res.main(["all", "--multi-exp"]) == 0
    assert capsys.readouterr().out == (
        "Parsing files in all/a\nfile: all/a/seed1/log.txt. accuracy: 90.00%. \n===\n"
        "Summary of directory: all/a\n* accuracy: 90.00% +- 0.00%\n===\n"
        "Parsing files in all/b\nfile: all/b/seed1/log.txt. accuracy: 80.00%. \n===\n"
        "Summary of directory: all/b\n* accuracy: 80.00% +- 0.00%\n===\n"
        "Average performance\n* accuracy: 85.00%\n"
    )


@pytest.mark.parametrize("end", ["Finish training", "Finished training"])
@pytest.mark.parametrize("accuracy", ["93.3", "93.27"])
def test_both_end_signals_and_decimals(tmp_path, capsys, end, accuracy):
    write_log(tmp_path / "seed1", accuracy, end=end)
    assert parse_test_res.main([str(tmp_path)]) == 0
    assert f"* accuracy: {float(accuracy):.2f}% +- 0.00%" in capsys.readouterr().out


def test_last_result_counts_and_nothing_before_the_end_of_training(tmp_path, capsys):
    write_log(tmp_path / "seed1", "50.0", end="")  # a validation result of an earlier epoch
    with (tmp_path / "seed1" / "log.txt").open("a") as file:
        file.write("Finish training\n" + RESULT.format(accuracy="60.0") + RESULT.format(accuracy="61.5"))
    assert parse_test_res.main([str(tmp_path)]) == 0
    assert "accuracy: 61.50%" in capsys.readouterr().out


def test_test_log_and_keyword(tmp_path, capsys):
    write_log(tmp_path / "seed1", "70.0", end="", subsample="new")
    assert parse_test_res.main([str(tmp_path), "--test-log", "--keyword", "macro_f1"]) == 0
    assert "* macro_f1: 91.40% +- 0.00%" in capsys.readouterr().out


def test_ci95(tmp_path, capsys):
    for seed, accuracy in enumerate(("10.0", "20.0", "30.0", "40.0"), start=1):
        write_log(tmp_path / f"seed{seed}", accuracy, seed=seed)
    assert parse_test_res.main([str(tmp_path), "--ci95"]) == 0
    # population deviation sqrt(125) = 11.1803; 1.96 * 11.1803 / 2 = 10.96
    assert "* accuracy: 25.00% +- 10.96%" in capsys.readouterr().out


def test_later_logs_are_reported(tmp_path, capsys):
    write_log(tmp_path / "seed1", "70.0")
    write_log(tmp_path / "seed1", "71.0", name="log.txt-2026-01-02-03-04-05")
    assert parse_test_res.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "* accuracy: 70.00%" in out
    note = f"note: {tmp_path}/seed1 holds 2 logs; log.txt counts, not log.txt-2026-01-02-03-04-05 (71.00%)"
    assert note in err.splitlines()


def test_result_of_a_repeated_run_is_read_where_the_first_one_failed(tmp_path, capsys):
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "log.txt").write_text(CONFIG.format(subsample="base", seed=1))
    write_log(tmp_path / "seed1", "71.0", name="log.txt-2026-01-02-03-04-05")
    assert parse_test_res.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "log.txt-2026-01-02-03-04-05. accuracy: 71.00%" in out
    assert "log.txt (no result)" in err


def test_unfinished_run_is_named_and_left_out(tmp_path, capsys):
    write_log(tmp_path / "seed1", "70.0")
    (tmp_path / "seed2").mkdir()
    (tmp_path / "seed2" / "log.txt").write_text("epoch [1/5]\n")
    assert parse_test_res.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "* accuracy: 70.00%" in out
    assert f"note: no result in {tmp_path}/seed2/log.txt" in err


def test_base_and_new_in_one_folder_are_refused(tmp_path, capsys):
    write_log(tmp_path / "seed1", "80.0", subsample="base")
    write_log(tmp_path / "seed2", "70.0", subsample="new", seed=2)
    assert parse_test_res.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} mixes logs of different DATASET.SUBSAMPLE_CLASSES: base (")


def test_base_and_new_are_not_averaged_over_experiments(tmp_path, capsys):
    write_log(tmp_path / "a" / "seed1", "80.0", subsample="base")
    write_log(tmp_path / "b" / "seed1", "70.0", subsample="new")
    assert parse_test_res.main([str(tmp_path), "--multi-exp"]) == 2
    assert "mixes logs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ({}, [], "Nothing found in"),
        ({"seed1/notes.txt": ""}, [], "no log.txt in"),
        ({"seed1/log.txt": RESULT.format(accuracy="1.0")}, [], "--test-log reads logs of --eval-only runs"),
        ({"seed1/log.txt": "Finish training\n"}, ["--test-log"], "leave out --test-log"),
        ({}, ["--multi-exp"], "it has no sub-folder"),
    ],
)
def test_bad_folders_end_in_one_line(tmp_path, capsys, files, arguments, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert parse_test_res.main([str(tmp_path), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]


def test_missing_folder():
    assert parse_test_res.main(["/nonexistent"]) == 2


def test_runs_without_torch_or_dassl(tmp_path):
    write_log(tmp_path / "seed1", "70.0")
    code = (
        "import sys, parse_test_res; code = parse_test_res.main(sys.argv[1:]);"
        "assert not {'torch', 'dassl'} & set(sys.modules); sys.exit(code)"
    )
    root = Path(parse_test_res.__file__).parent
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
