"""What ``pip install .`` gives: ``capt`` and ``capt_compat`` with the bundled Dassl, and nothing of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_extra_and_marker_that_the_documents_name_is_there():
    extras = project()["project"]["optional-dependencies"]
    assert {"report", "tables", "test"} <= extras.keys()
    markers = {line.split(":")[0] for line in project()["tool"]["pytest"]["ini_options"]["markers"]}
    assert {"slow", "gpu", "regression"} <= markers


def test_requirements_have_lower_bounds_only():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines
    assert all(">=" in line and "<" not in line and "==" not in line for line in lines)


def test_packages_follow_the_folders():
    stub = "import setuptools; setuptools.setup = lambda **keys: print(*keys['packages'])"
    code = f"{stub}; exec(open('setup.py').read())"
    command = [sys.executable, "-c", f"__file__ = 'setup.py'\n{code}"]
    packages = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"capt", "capt_compat", "capt_compat.bundled", "capt_compat.bundled.dassl"} <= set(packages)
    assert "capt_compat.bundled.dassl.engine" in packages
    assert not [name for name in packages if "__pycache__" in name or name.split(".")[0] not in ("capt", "capt_compat")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tracked files, without the network."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").write_text("# CAPT\n")
    for folder in ("trainers/capt", "compat"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        out,
        copy,
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    sources = {
        target + str(path.relative_to(ROOT / folder))
        for folder, target in (("trainers/capt", "capt/"), ("compat", "capt_compat/"))
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sources <= names
    assert "capt/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"capt", "capt_compat"}
    for requirement in ("torch>=2.2", "clip-anytorch", "yacs", "safetensors"):
        assert f"Requires-Dist: {requirement}" in metadata


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["capt_compat, dassl.engine, capt", "capt, capt_compat", "capt"])
def test_installed_plugin_registers_the_trainer(wheel, tmp_path, imports):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import {imports}; from dassl.engine import TRAINER_REGISTRY; from dassl.config import get_cfg_default;"
        "assert 'CAPT' in TRAINER_REGISTRY.registered_names(); assert 'site' not in capt.__file__;"
        "cfg = get_cfg_default(); capt.extend_cfg(cfg); assert cfg.TRAINER.CAPT.BASE.NAME"
    )
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
