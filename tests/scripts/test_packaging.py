"""What ``pip install .`` gives: ``capt``, ``capt_compat`` with the bundled Dassl, and the tools with what they need.

Nothing else of the repository is at the top of site-packages; ``capt_tools/checkout`` holds its part of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "capt"))

import tiny_capt  # noqa: E402


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
    assert {"capt_compat.bundled.dassl.engine", "capt_tools.report", "capt_tools.checkout.datasets"} <= set(packages)
    assert not [name for name in packages if "__pycache__" in name or name.split(".")[0] not in TOP]


TOP = {"capt", "capt_compat", "capt_tools"}
# Folder of the checkout, and where it goes.
CARRIED = ("trainers", "datasets", "compat", "configs", "descriptions", "assets")
FOLDERS = [("trainers/capt", "capt"), ("compat", "capt_compat"), ("capt_tools", "capt_tools")]
FOLDERS += [(folder, f"capt_tools/checkout/{folder}") for folder in CARRIED]
SUFFIXES = (".py", ".typed", ".yaml", ".json", ".pt", ".csv", ".jinja")
MODULES = ("train.py", "parse_test_res.py")


def pip(*arguments: object, python: Path | str = sys.executable) -> None:
    command = [python, "-m", "pip", *arguments]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what the package is made of, with neighbours that do not belong into it."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "LICENSE", *MODULES):
        shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").write_text("# CAPT\n")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in (*CARRIED, "capt_tools", "scripts"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    (copy / "benchmarks").mkdir()
    (copy / "benchmarks/speed.py").touch()
    return copy


def build_wheel(source: Path, out: Path) -> Path:
    """Build without the network."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", out, source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def content(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.mark.slow
def test_wheel_content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    names = content(wheel)
    expected = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES
    }
    expected |= {f"capt_tools/checkout/{name}" for name in MODULES}
    shell = {name for name in names if name.startswith("capt_tools/checkout/scripts/")}
    assert names - shell == expected
    assert {"capt/py.typed", "capt_tools/report/template.html.jinja", "capt_tools/comparison/published.csv"} <= names
    assert {f"capt_tools/checkout/scripts/{name}.sh" for name in ("_run", "capt/few_shot")} <= shell
    assert all(name.endswith(".sh") for name in shell)
    assert {name.split("/")[0] for name in names} == TOP
    for requirement in ("torch>=2.2", "clip-anytorch", "yacs", "safetensors", "click", "rich", "jinja2"):
        assert f"Requires-Dist: {requirement}" in metadata


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(source, wheel, tmp_path):
    code = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert content(build_wheel(folder, tmp_path)) == content(wheel)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a fresh environment with the wheel in it, and the other packages of the running one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site_packages / "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed))
    pip("install", "--no-deps", "--no-index", "-q", wheel, python=folder / "bin/python")
    return folder / "bin"


def start(installed: Path, folder: Path, *command: object, status: int = 0, **variables: str) -> str:
    """Run a command of that environment in a folder; returns what it printed on both streams."""
    environment = {"PATH": f"{installed}:/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1", **variables}
    words = [str(installed / str(command[0])), *map(str, command[1:])]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stdout[-2000:] + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_installed_command_line_brings_its_own_checkout(installed, tmp_path):
    assert "drop-in" in start(installed, tmp_path, "capt", "--help")
    assert "capt predict --run RUN" in start(installed, tmp_path, "capt", "predict", "--help")
    assert "error: no file a.jpg" in start(installed, tmp_path, "capt", "predict", "--run", "r", "a.jpg", status=2)
    assert "is no CoOp-style" in start(installed, tmp_path, "python", "-m", "capt", "drop-in", "nowhere", status=2)
    code = (
        "import capt_tools.house as h, capt, train, datasets, trainers;"
        "places = [h.ROOT.parent.parent, *(h.Path(m.__file__).resolve() for m in (capt, train, datasets, trainers))];"
        "print(h.install('report'), *places, sep='\\n')"
    )
    hint, site_packages, *places = start(installed, tmp_path, "python", "-c", code).splitlines()
    assert hint == "pip install 'capt-prompt-tuning[report]'"
    assert Path(site_packages).resolve().is_relative_to(installed.parent.resolve())
    assert all(place.startswith(site_packages) for place in places)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_empty_folder_is_enough_to_train_and_use_it(installed, tmp_path):
    """By the installed configurations, prompts and CLIP; what is made lies in the current folder."""
    files = ["--dataset-config-file", "configs/datasets/glyphs.yaml", "--backbone", "assets/glyphs_clip.pt"]
    files += ["--config-file", "configs/trainers/CAPT/demo.yaml", "--root", "data", "--output-dir", "run"]
    options = ["INPUT.SIZE", "(48, 48)", "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 4]
    start(installed, tmp_path, "capt", "train", "--trainer", "CAPT", "--seed", 1, *files, *options)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}
    assert "CAPT on ZeroshotCLIP" in start(installed, tmp_path, "capt", "compare", "run")
    start(installed, tmp_path, "capt", "report", "run")
    assert (tmp_path / "run/report/report.html").stat().st_size > 100_000
    image = next(tmp_path.glob("data/glyphs/images/test/cup/*.png"))
    assert "the image feature was turned by" in start(installed, tmp_path, "capt", "explain", "--run", "run", image)


@pytest.mark.slow
def test_a_foreign_repository_gets_the_plugin_from_the_installed_package(installed, tmp_path):
    for folder in ("trainers", "datasets", "configs/trainers", "configs/datasets"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train.py").write_text(
        "import dassl.engine\nimport trainers.coop\n\n\ndef setup_cfg(args):\n    extend_cfg(cfg)\n"
    )
    assert "adds trainers/capt/" in start(installed, tmp_path, "capt", "drop-in", ".")
    assert (tmp_path / "trainers/capt/method/model.py").is_file()
    assert os.access(tmp_path / "scripts/capt/few_shot.sh", os.X_OK)
    assert "up to date" in start(installed, tmp_path, "capt", "drop-in", ".")


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "capt_tools/demo.py").is_file(), reason="capt demo and capt quick are not there yet")
@pytest.mark.parametrize("command", [("demo",), ("quick", "photos", 4)], ids=lambda command: command[0])
def test_demo_and_quick_from_an_empty_folder(installed, tmp_path, command):
    variables = {"METHODS": "zsclip capt:ZeroshotCLIP", "EPOCHS": "1"}
    if command[0] == "quick":
        tiny_capt.draw_pictures(tmp_path / "photos", ["cup", "jug", "vase"], 10)
        variables |= {"BACKBONE": "assets/glyphs_clip.pt", "SIZE": "(48, 48)"}
    printed = start(installed, tmp_path, "capt", *command, **variables)
    assert re.search(r"│ CAPT on ZeroshotCLIP +│ +\d+\.\d\d │", printed)
    assert {path.name for path in tmp_path.iterdir()} <= {"photos", "data", "output"}


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
