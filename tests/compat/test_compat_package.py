"""Which Dassl ``import compat`` chooses, also under the name it is installed by."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code, *paths):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    code = f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def no_installed_dassl():
    """Skip where a real Dassl is installed for this Python."""
    if run("import importlib.util as u; print(u.find_spec('dassl') is not None)") == ["True"]:
        pytest.skip("a Dassl is installed for this Python")


@pytest.mark.usefixtures("no_installed_dassl")
def test_bundled_under_the_installed_name(tmp_path):
    shutil.copytree(ROOT / "compat", tmp_path / "capt_compat")
    out = run("import capt_compat, dassl; print(capt_compat.DASSL, dassl.__file__)", tmp_path)
    assert out == ["bundled", str(tmp_path / "capt_compat" / "bundled" / "dassl" / "__init__.py")]


@pytest.mark.usefixtures("no_installed_dassl")
def test_a_folder_called_dassl_is_no_dassl(tmp_path):
    (tmp_path / "dassl").mkdir()
    out = run("import compat, dassl; print(compat.DASSL, dassl.__version__)", tmp_path, ROOT)
    assert out == ["bundled", "0.6.3"]


@pytest.mark.usefixtures("no_installed_dassl")
def test_two_copies_of_the_bridge_agree(tmp_path):
    shutil.copytree(ROOT / "compat", tmp_path / "capt_compat")
    out = run("import compat, dassl, capt_compat; print(compat.DASSL, capt_compat.DASSL)", ROOT, tmp_path)
    assert out == ["bundled", "bundled"]
