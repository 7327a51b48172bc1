"""``capt``: it starts without the tools, hands each its arguments as they are, and shows examples that work."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from capt_tools import cli, explain, predict
from capt_tools.house import find, install
from capt_tools.report.options import model_places
from capt_tools.tool import exit_code

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def capt(monkeypatch):
    """Runs ``capt ARGUMENT...`` in this process."""
    monkeypatch.setattr(sys, "argv", ["capt"])  # a tool's name goes into its first word
    return lambda *arguments: CliRunner().invoke(cli.tools, arguments, prog_name="capt")


# The group

START = """
import sys, time
start = time.perf_counter()
from capt_tools import cli
cli.tools(["--help"], prog_name="capt", standalone_mode=False)
print("seconds:", time.perf_counter() - start)
print("modules:", *sys.modules)
"""


def test_help_lists_every_command_and_imports_no_tool():
    out = subprocess.run([sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    text, seconds, modules = re.split(r"^(?:seconds|modules): ", out, flags=re.MULTILINE)
    listed = dict(line.split(maxsplit=1) for line in text.partition("Commands:\n")[2].splitlines() if line.strip())
    assert listed == {name: summary for name, (_, summary) in cli.COMMANDS.items()}
    loaded = set(modules.split())
    assert {name for name in loaded if name.startswith("capt_tools")} == {
        *("capt_tools", "capt_tools.cli", "capt_tools.house")
    }
    assert not loaded & {"torch", "numpy", "dassl", "trainers", "datasets", "capt", "train"}
    print(f"capt --help without the start of python: {float(seconds):.3f} s")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_arguments_reach_the_tool_as_they_are_and_its_code_comes_back(capt, monkeypatch, name):
    called = []
    tool = SimpleNamespace(main=lambda argv: called.append(argv) or 7)
    imported = []
    monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=lambda m: imported.append(m) or tool))
    arguments = ["-x", "--help", "a b", "--", "--", "-h", "KEY", ""]
    assert capt(name, *arguments).exit_code == 7
    assert called == [arguments]
    assert imported == [cli.COMMANDS[name][0]]
    assert sys.argv[0] == f"capt {name}"


def test_an_unknown_command_is_answered_with_the_nearest_one(capt):
    result = capt("predcit", "--run", "x")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == "Error: No such command 'predcit'. Did you mean 'predict'?"


def test_bad_input_ends_as_it_does_in_the_tool(capt):
    result = capt("predict", "--run", "nowhere", "missing.jpg")
    assert (result.exit_code, result.output) == (2, "error: no file missing.jpg\n")
    result = capt("predict", "missing.jpg")
    assert result.exit_code == 2
    assert result.output.endswith("capt predict: error: the following arguments are required: --run\n")


class WithoutTools:
    """Python's import system where the tools are not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "capt_tools":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_the_plugin_alone_says_what_is_missing(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "capt_tools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutTools, *sys.meta_path])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "trainers/capt/__main__.py"), run_name="__main__")
    assert capsys.readouterr().err == (
        "error: the commands are in capt_tools, which is missing; pip install capt-prompt-tuning\n"
    )


@pytest.mark.parametrize("module", ["capt_tools", "trainers.capt"])
def test_it_runs_as_a_module(module):
    command = [sys.executable, "-m", module, "drop-in", "nowhere"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "nowhere is no CoOp-style repository" in result.stderr


# The tools behind it


class Parsed(Exception):
    """Ends a tool behind its parser."""


def examples(text: str) -> list[list[str]]:
    """The commands that end a help text, in words; without variables in front, comments and pipes."""
    lines = text.partition("\nexamples:\n")[2].replace("\\\n", "").splitlines()
    commands = [shlex.split(line.partition(" | ")[0], comments=True) for line in lines if line.strip()]
    return [command[next(i for i, word in enumerate(command) if "=" not in word) :] for command in commands]


THERE = [name for name, (module, _) in cli.COMMANDS.items() if importlib.util.find_spec(module)]


@pytest.mark.parametrize("name", THERE)
def test_help_ends_with_examples_that_parse(capt, monkeypatch, name):
    result = capt(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"usage: capt {name} ")
    found = examples(result.output)
    own = [command for command in found if command[:2] == ["capt", name]]
    assert own
    assert own[-1] == found[-1]
    assert all(command[:2] == ["python", "-m"] for command in found if command not in own)

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*arguments, **keywords):
        raise Parsed(parse(*arguments, **keywords))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    for command in own:
        result = capt(*command[1:])
        assert isinstance(result.exception, Parsed), (command, result.output)


FACES = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", FACES)
def test_scripts_are_faces_of_the_tools(name):
    face, tool = importlib.import_module(f"scripts.{name}"), importlib.import_module(f"capt_tools.{name}")
    assert face.main is tool.main
    assert f"python scripts/{name}.py " in face.__doc__


def test_every_tool_has_its_face():
    modules = {module.rpartition(".")[2] for module, _ in cli.COMMANDS.values() if module.startswith("capt_tools.")}
    new = {"quick", "demo", "plan", "explain", "train_flags"}  # these came with the command line
    assert modules - new <= set(FACES)


def test_explain_is_predict_with_that_switch():
    arguments = ["--run", "RUN", "a.jpg", "photos", "--top-k", "3"]
    told = explain.build_parser().parse_args(arguments)
    assert told == predict.build_parser().parse_args([*arguments, "--explain"])


# What they share


@pytest.mark.parametrize("code", [None, 0, 1])
def test_exit_code_is_what_the_work_returns(code):
    assert exit_code(lambda: code) == (code or 0)


@pytest.mark.parametrize("error", [ValueError("no such thing"), FileNotFoundError("no such thing")])
def test_bad_input_is_one_line_and_code_2(error, capsys):
    def fail():
        raise error

    assert exit_code(fail) == 2
    assert capsys.readouterr().err == "error: no such thing\n"
    with pytest.raises(type(error), match="no such thing"):
        exit_code(fail, bad_input=(KeyError,))


def test_a_missing_optional_package_is_named_with_the_fix(capsys):
    def work():
        import no_such_package  # noqa: F401

    assert exit_code(work, optional=["no_such_package"], hint=install("report")) == 2
    assert capsys.readouterr().err == "error: no_such_package is missing; pip install '.[report]'\n"
    with pytest.raises(ModuleNotFoundError):
        exit_code(work, optional=["another"])


def test_paths_are_looked_for_in_the_current_folder_then_in_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find("configs/datasets/glyphs.yaml") == str(ROOT / "configs/datasets/glyphs.yaml")
    for unknown in ("configs/datasets/none.yaml", "ViT-B/16", str(tmp_path / "none"), ""):
        assert find(unknown) == unknown
    (tmp_path / "configs/datasets").mkdir(parents=True)
    (tmp_path / "configs/datasets/glyphs.yaml").touch()
    assert find("configs/datasets/glyphs.yaml") == "configs/datasets/glyphs.yaml"


def test_a_run_is_told_where_its_clip_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    places = [model_places(predict.build_parser().parse_args(["--run", "r", "a.jpg", *given])) for given in BACKBONES]
    assert [place["backbone"] for place in places] == [None, "ViT-B/16", str(ROOT / "assets/glyphs_clip.pt")]


BACKBONES = [(), ("--backbone", "ViT-B/16"), ("--backbone", "assets/glyphs_clip.pt")]
