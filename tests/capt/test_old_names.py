"""Names of the flat layout: they give the modules of today, and say which; nothing here uses them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import trainers.capt
from trainers.capt.old_names import MOVED, keep_old_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_old_name_is_the_new_module(old, new):
    sys.modules.pop(f"trainers.capt.{old}", None)
    with pytest.warns(FutureWarning, match=rf"trainers\.capt\.{old} is trainers\.capt\.{new} now"):
        moved = importlib.import_module(f"trainers.capt.{old}")
    module = importlib.import_module(f"trainers.capt.{new}")
    assert moved is module
    assert module.__name__ == module.__spec__.name == f"trainers.capt.{new}"


def test_every_name_of_the_flat_layout_is_known():
    at_the_door = {"__init__", "config", "registration", "trainer"}
    assert len(MOVED) == 31 - len(at_the_door)
    assert not at_the_door & MOVED.keys()
    assert all((ROOT / "trainers/capt" / f"{new.replace('.', '/')}.py").is_file() for new in MOVED.values())


@pytest.mark.parametrize("package", ["capt", "trainers.capt"])
def test_every_way_of_importing(package, tmp_path):
    """As a stranger's script does it, under both names of the package; the warning points at each importing line."""
    script = tmp_path / "mine.py"
    script.write_text(
        f"import {package}\n"
        f"import {package}.confusion_bank\n"
        f"from {package}.prompted_clip import load_clip\n"
        f"from {package} import templates\n"
        f"{package}.losses.original_loss\n"
        f"import {package}.bank.confusion_bank as new\n"
        f"assert {package}.confusion_bank is new and load_clip is {package}.load_clip\n"
    )
    paths = f"{ROOT}:{ROOT / 'trainers'}"
    done = subprocess.run(
        [sys.executable, script], env={"PYTHONPATH": paths, "PATH": ""}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = [int(line.split(":")[1]) for line in done.stderr.splitlines() if "FutureWarning" in line]
    assert lines == [2, 3, 4, 5]
    assert f"{package}.confusion_bank is {package}.bank.confusion_bank now" in done.stderr


def test_one_finder_a_package():
    before = list(sys.meta_path)
    keep_old_names("trainers.capt")
    assert sys.meta_path == before


def test_nothing_here_imports_an_old_name():
    old = {f"{package}.{name}" for package in ("capt", "trainers.capt") for name in MOVED}
    found = []
    for folder in ("trainers", "datasets", "capt_tools", "scripts", "benchmarks", "compat", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                elif isinstance(node, ast.Import):
                    names = {alias.name for alias in node.names}
                else:
                    continue
                found += [f"{path}:{node.lineno}" for name in names if name in old]
    assert found == []


# The package's door


def test_public_names_come_on_first_use():
    script = (
        "import sys, capt\n"
        "assert not {'torch', 'numpy', 'clip', 'dassl.engine'} & sys.modules.keys(), 'imported too early'\n"
        "assert set(capt.__all__) <= set(dir(capt))\n"
        "capt.extend_cfg\n"
        "from capt import *\n"
        "assert callable(load) and CAPT.__name__ == 'CAPT' and PUBLISHED['BANK.SHOTS'] == -1\n"
        "from dassl.engine import TRAINER_REGISTRY\n"
        "assert 'CAPT' in TRAINER_REGISTRY.registered_names()\n"
    )
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'trainers'}", "PATH": ""}
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", script], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_every_public_name_has_a_home():
    assert sorted(trainers.capt._HOME_OF) == sorted(trainers.capt.__all__)
    assert all(getattr(trainers.capt, name) is not None for name in trainers.capt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'confusion'"):
        trainers.capt.confusion  # noqa: B018
