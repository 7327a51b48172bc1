"""Plans in Python: what ``capt plan`` prints, what a job holds, and what the runner does with both."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from capt_tools import demo, quick
from capt_tools.plan import main
from capt_tools.plan.ablate import ALL, LITERAL, options_of
from capt_tools.plan.methods import METHODS, method_of
from capt_tools.plan.protocols import plan
from capt_tools.plan.reproduce import reproduce
from capt_tools.plan.run_all import stages
from capt_tools.plan.runner import Runner, quoted
from capt_tools.plan.settings import Settings, helps
from capt_tools.plan.steps import Job, StopError
from capt_tools.sweep.run_all import run_all

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/sh
echo "$CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS: $*"
case "$*" in *"$FAIL"*) exit 7;; esac
"""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*helps(), "dry_run", "methods", "datasets", "gpus"):
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def stub(tmp_path):
    """Stands for python: says the device, the threads and the arguments; fails where FAIL is part of these."""
    path = tmp_path / "stub"
    path.write_text(STUB)
    path.chmod(0o755)
    return {**os.environ, "PYTHON": str(path), "OUTPUT": str(tmp_path / "out"), "FAIL": "never"}


def jobs(steps):
    return [step for step in steps if isinstance(step, Job)]


def option(words, name):
    return words[words.index(name) + 1]


# capt plan


@pytest.mark.parametrize(
    ("protocol", "method", "scripts"),
    [
        ("base2new", "coop", ["coop/base2new_train dtd 3", "coop/base2new_test dtd 3"]),
        ("xd", "maple", ["maple/xd_train imagenet 3", "maple/xd_test dtd 3"]),
        ("few_shot", "promptsrc", ["promptsrc/few_shot dtd 16"]),
        ("few_shot", "zsclip", ["zsclip/zeroshot dtd vit_b16"]),
        ("base2new_test", "capt", ["capt/base2new_test dtd 3"]),
        ("xd_train", "promptkd", ["promptkd/xd_train dtd 3"]),
        ("coop_main", "coop", ["coop/main dtd vit_b16 end 16 16 False"]),
        ("coop_eval", "coop", ["coop/eval dtd vit_b16_ep50_ctxv1"]),
        ("zeroshot", "zsclip", ["coop/zeroshot dtd vit_b16"]),
    ],
)
def test_capt_plan_prints_the_commands_of_the_scripts(protocol, method, scripts, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    flags = ["--python", "python", "--output", "/nonexistent", "--opts", "A.B 1", "--size", "(48, 48)"]
    assert main([protocol, method, "dtd", "3", *flags]) == 0
    shown = capsys.readouterr().out.splitlines()
    variables = {"PYTHON": "python", "OUTPUT": "/nonexistent", "OPTS": "A.B 1", "SIZE": "(48, 48)", "SEEDS": "3"}
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables}
    dry = []
    for script in scripts:
        name, *arguments = script.split()
        command = ["bash", f"scripts/{name}.sh", *arguments]
        dry += subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown == [line for line in dry if line.startswith("python train.py")]


def test_capt_plan_names_a_base_learner_once(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["base2new", "capt:CoOp", "dtd", "1", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line[:1] == "#" for line in shown] == [True, False, False, False]
    assert [option(shlex.split(line), "--trainer") for line in shown[1:]] == ["CoOp", "CAPT", "CAPT"]
    done = tmp_path / "base2new/train_base/dtd/shots_16/CoOp/vit_b16_ctxv1/seed1"
    done.mkdir(parents=True)
    (done / "results.json").touch()
    assert main(["base2new", "coop", "dtd", "1", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"# Results are available in {done}"


def test_capt_plan_works_from_any_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["base2new_train", "coop", "dtd", "1"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:2] == [sys.executable, str(ROOT / "train.py")]
    assert Path(option(words, "--config-file")).is_file()
    assert option(words, "--output-dir").startswith("output/")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("base2new copo dtd 1", "unknown method copo; there are: capt clipadapter cocoop coop"),
        ("base2new coop nothing 1", "no such data set: configs/datasets/nothing.yaml"),
        ("base2new coop dtd 1 --cfg none", "no such configuration: configs/trainers/CoOp/none.yaml"),
        ("xd tipadapter dtd 1", "tipadapter has no xd_train; it has base2new_train, base2new_test, few_shot"),
        ("coop_main maple dtd 1", "maple has no coop_main"),
        ("base2new capt:Other dtd 1", "no default configuration for Other; set CFG"),
        ("base2new capt:CAPT dtd 1", "BASE must be a base learner of CAPT, got CAPT itself"),
    ],
)
def test_capt_plan_refuses_in_one_line(arguments, line, capsys):
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1


def test_plans_need_no_torch():
    code = "import sys; from capt_tools.plan import main; main('base2new capt:CoOp dtd 1'.split()); "
    code += "import capt_tools.plan.script, capt_tools.quick, capt_tools.demo; "
    code += (
        "print({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'capt_tools'}, file=sys.stderr)"
    )
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == "{'__main__'}\n" or result.stderr == "set()\n"


# Methods, settings, jobs


def test_every_default_configuration_exists_and_every_method_has_its_scripts():
    for method in METHODS:
        for key in method.yamls:
            assert (ROOT / method.yaml(method.default_cfg(*(key.split("/") + ["", ""])[:2]))).is_file()
        names = {"coop_main": "main", "coop_eval": "eval"}
        scripts = {path.stem for path in (ROOT / "scripts" / method.folder).glob("*.sh")}
        scripts -= {"ablate", "quick", "reproduce"} | ({"zeroshot"} if method.folder == "coop" else set())
        assert scripts == {names.get(protocol, protocol) for protocol in method.protocols}


def test_literal_is_the_published_preset():
    from trainers.capt.config import PUBLISHED

    assert {key: str(value) for key, value in PUBLISHED.items()} == LITERAL


def test_every_listed_variant_has_options_and_crossfit_needs_its_yaml():
    assert options_of("full") == []
    assert options_of("gain_1") == ["TRAINER.CAPT.MGDE.FIT_GAIN", "False", "TRAINER.CAPT.MGDE.GAIN", "1.0"]
    assert all(len(options_of(name)) % 2 == 0 for name in ALL.split())
    assert options_of("crossfit", "f.yaml")[-1] == "f.yaml"
    with pytest.raises(StopError, match="crossfit needs FOLD_CONFIG"):
        options_of("crossfit")
    with pytest.raises(StopError, match="no variant no; there are: full"):
        options_of("no")


def test_an_empty_variable_is_one_that_is_not_given():
    assert Settings.read({"SHOTS": "", "SEEDS": "", "DRY_RUN": "", "PYTHON": ""}) == Settings()
    read = Settings.read({"SEEDS": " 4  5 ", "OPTS": "A 1\tB 2", "DRY_RUN": "1", "BASE_CFG": "x"})
    assert read == Settings(seeds=("4", "5"), opts=("A", "1", "B", "2"), is_dry=True, base_cfg="x")


def test_runs_of_several_processes_say_so_to_train_py():
    settings = replace(Settings(), house=str(ROOT), is_dry=True, output="/nowhere")
    for nproc, words in (("", []), ("1", []), ("4", ["--nproc", "4"])):
        runs = [stage.plan for stage in stages(replace(settings, nproc=nproc), "base2new", "coop", "dtd", "1")]
        for job in (job for run in runs for job in jobs(run)):
            assert job.arguments[:2] + words == job.arguments[: 2 + len(words)]
            assert ("--nproc" in job.arguments) == bool(words)
    for nproc in ("0", "-1", "two"):
        with pytest.raises(StopError, match=f"NPROC must be a whole number from 1 on, got {nproc}"):
            _ = replace(settings, nproc=nproc).processes


def test_head_of_run_sh_lists_every_variable():
    head = (ROOT / "scripts/_run.sh").read_text().split("set -euo")[0]
    listed = {line.split()[1].lower() for line in head.splitlines() if line.startswith("#   ")}
    assert listed == set(helps()) - {"sub", "ctp", "nctx", "csc"} | {"dry_run"}


def test_train_py_takes_a_jobs_arguments():
    from train import build_parser

    settings = replace(Settings(), house=str(ROOT), size="(48, 48)", backbone="a b.pt", is_dry=True, output="/nowhere")
    for name in ("capt:MaPLe", "zsclip", "promptkd"):
        for stage in stages(settings, "base2new", name, "dtd", "1"):
            for job in jobs(stage.plan):
                args = build_parser().parse_args(job.arguments)
                assert (args.output_dir, args.backbone, args.seed) == (job.folder, "a b.pt", 1)
                assert len(args.opts) % 2 == 0
                assert Path(args.config_file).is_file()


def test_a_job_names_the_runs_that_it_reads():
    settings = replace(Settings(), house=str(ROOT), is_dry=True, base="CoOp", output="/nowhere")
    base, test = jobs(plan(settings, method_of("CAPT"), "base2new_test", "dtd", "1"))
    assert base.needs == ()
    assert test.needs == (option(test.arguments, "--model-dir"), base.folder)
    (only,) = jobs(plan(replace(settings, base_dir="mine"), method_of("CAPT"), "few_shot", "dtd", "1"))[:1]
    assert only.needs == ("mine",)


def test_folders_with_blanks_stay_one_word():
    settings = replace(Settings(), house=str(ROOT), is_dry=True, output="my runs")
    for job in jobs(reproduce(settings, {}, "dtd", "1", "honest"))[1:3]:
        teacher = option(job.arguments, "TRAINER.PROMPTKD.TEACHER_DIR")
        assert teacher.startswith("my runs/base2new/train_base/dtd/shots_16/PromptSRC/")


# The runner


@pytest.mark.parametrize("word", ["", "a b", "~", "a~", "x=~y:~z", "#", "a#", "é", "a\tb", "a'\n\\", "\x01é'"])
def test_quoting_is_that_of_bash(word):
    script = 'printf "%q " "$@"'
    for text in (word, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ aZ0"):
        command = ["bash", "-c", script, "bash", text]
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        said = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", check=True).stdout
        if text != "\x01é'":  # not to the letter there, but to the same effect
            assert quoted([text]) == said
        echoed = subprocess.run(["bash", "-c", f"printf %s {quoted([text])}"], env=env, capture_output=True, check=True)
        assert echoed.stdout.decode() == text


def test_the_runner_stops_with_the_code_of_what_failed(stub, capfd):
    runner = Runner(Settings.read(stub), {**stub, "FAIL": "bad"})
    runner.start([stub["PYTHON"], "good"])
    with pytest.raises(StopError) as error:
        runner.start([stub["PYTHON"], "bad"])
    assert (error.value.code, error.value.line) == (7, "")
    with pytest.raises(StopError, match="cannot start no-such-python .*; set PYTHON") as error:
        runner.start(["no-such-python"])
    assert error.value.code == 127
    with pytest.raises(StopError) as error:
        runner.start(["sh", "-c", "kill -9 $$"])
    assert error.value.code == 137
    assert capfd.readouterr().out.count("bad") == 1


def test_what_is_started_is_heard_line_by_line(stub):
    heard = []
    Runner(Settings.read(stub), say=heard.append).start(["printf", "a\\rb\\n\\nc"])
    assert heard == ["a\rb", "", "c"]


def test_every_run_has_one_of_the_devices(stub, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    environ = {
        **stub,
        "METHODS": "coop zsclip",
        "DATASETS": "dtd",
        "SEEDS": "1 2 3",
        "GPUS": "4 7",
        "FAIL": "--model-dir",
    }
    lines = []
    assert run_all("base2new", Settings.read(environ), environ, lines.append) == 1
    started = [line for line in lines if line[:2] in ("4 ", "7 ")]
    assert {line[0] for line in started} == {"4", "7"}
    ran = sorted((option(line.split(), "--seed"), option(line.split(), "--trainer")) for line in started)
    assert ran == sorted((seed, name) for seed in "123" for name in ("CoOp", "ZeroshotCLIP", "ZeroshotCLIP"))
    assert "3 failed:" in lines  # what cannot find its model: the stub trains none
    assert len([line for line in lines if line.startswith("error: no trained model in ")]) == 3
    environ["GPUS"] = "5"
    run_all("few_shot", Settings.read(environ), environ)
    assert {line[:2] for line in capfd.readouterr().out.splitlines() if "train.py --root" in line and ": " in line} >= {
        "5 "
    }


# capt quick and capt demo


def test_capt_quick_from_any_folder(monkeypatch, capfd, tmp_path, stub):
    (tmp_path / "photos/cup").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHON", "FAIL"):
        monkeypatch.setenv(name, stub[name])
    assert quick.main(["photos", "4", "--epochs", "2", "--base", "CoOp"]) == 0
    out = capfd.readouterr().out
    called = [shlex.split(line) for line in out.splitlines() if line.startswith(stub["PYTHON"])]
    assert [option(words, "--trainer") for words in called[:3]] == ["ZeroshotCLIP", "CoOp", "CAPT"]
    assert {option(words, "--root") for words in called[:3]} == {str(tmp_path / "photos")}
    assert option(called[2], "--output-dir") == "output/quick/photos/folder/CAPT/vit_b16_ep20_on_CoOp_4shots/seed1"
    assert called[3][1:] == [str(ROOT / "scripts/compare.py"), "output/quick/photos"]
    assert (tmp_path / "output/quick/photos/folder.txt").read_text() == f"{tmp_path}/photos\n"
    assert out.splitlines()[-1].endswith("seed1 IMAGE_OR_FOLDER...")
    assert quick.main(["nothing"]) == 2
    assert capfd.readouterr().err == "error: no folder nothing\n"


def test_capt_demo_from_any_folder(monkeypatch, capfd, tmp_path, stub):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("PYTHON", "FAIL"):
        monkeypatch.setenv(name, stub[name])
    monkeypatch.setenv("METHODS", "zsclip tipadapter")
    assert demo.main(["--seeds", "1 2", "--output", "here"]) == 1  # the stub trains nothing to be tested
    printed, log = capfd.readouterr(), (tmp_path / "here/quickstart.log").read_text()
    started = [line.split() for line in log.splitlines() if line.startswith(" 1: ")]
    assert [option(words, "--trainer") for words in started] == ["ZeroshotCLIP", "ZeroshotCLIP", "TipAdapter"] * 2
    assert {option(words, "--backbone") for words in started} == {str(ROOT / "assets/glyphs_clip.pt")}
    assert "error: no trained model in here/base2new/" in printed.out
    assert " 1: " not in printed.out
    assert printed.err.splitlines()[-1] == "tipadapter glyphs seed 2: scripts/tipadapter/base2new_test.sh glyphs 2"
    monkeypatch.setenv("METHODS", "zsclip")
    assert demo.main(["--seeds", "1", "--output", "here"]) == 0
    out = capfd.readouterr().out
    assert "All runs are done in here" in out
    assert f" 1: {ROOT}/scripts/compare.py here" in out
    assert re.match(r"Took \d+ s. Runs: here/base2new; ", out.splitlines()[-1])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # what the user says stands
    assert demo.main(["--seeds", "1", "--output", "three"]) == 0
    assert f" 3: {ROOT}/scripts/compare.py three" in capfd.readouterr().out


def test_the_demos_table_holds_every_kind_of_method():
    folders = [name.partition(":")[0] for name in demo.METHODS.split()]
    assert set(folders) == {method.folder for method in METHODS} - {"ivlp", "vpt", "promptsrc", "promptkd"}
