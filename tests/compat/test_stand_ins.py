"""Packages that a host's code imports at its top and that are not installed on a fresh machine."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Nothing but what lies in the folders given is found under these names, as on a machine without them.
FRESH = """
import sys
sys.path[:0] = {paths!r}
ABSENT = ("gdown", "pkg_resources")

class Fresh:
    def find_spec(self, name, path=None, target=None):
        return None

for finder in list(sys.meta_path):
    if hasattr(finder, "find_spec"):
        sys.meta_path[sys.meta_path.index(finder)] = type("Hiding", (), {{"find_spec": staticmethod(
            lambda name, path=None, target=None, finder=finder:
                None if name in ABSENT else finder.find_spec(name, path, target)
        )}})()
"""
DASSL = {  # what a host's Dassl imports first, in the smallest package that the bridge takes for one
    "__init__.py": "",
    "data/__init__.py": "from .datasets.base import Datum",
    "data/datasets/__init__.py": "",
    "data/datasets/base.py": "import gdown\nclass Datum: pass\ndef download(url): gdown.download(url)",
}
CLIP = {
    "__init__.py": "from .clip import *",
    "clip.py": "from pkg_resources import packaging\nnew = packaging.version.parse",
}


def lay(folder, name, files):
    for path, text in files.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text(text + "\n")


def run(code, *paths, check=True):
    script = FRESH.format(paths=[str(path) for path in paths]) + code
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/", check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


STAND_INS = "import importlib.util as u; spec = u.spec_from_file_location('stand_ins', {file!r})\n"
STAND_INS += "stand_ins = u.module_from_spec(spec); spec.loader.exec_module(stand_ins)\n"
STAND_INS += "stand_ins.stand_in_for_absent_packages()\n"


def served(code, *paths, **more):
    return run(STAND_INS.format(file=str(ROOT / "compat" / "stand_ins.py")) + code, *paths, **more)


def test_a_host_imports_them_before_anything_else(tmp_path):
    lay(tmp_path, "dassl", DASSL)
    lay(tmp_path, "clip", CLIP)
    code = "from dassl.data import Datum\nimport clip\nprint(clip.new('2.0') > clip.new('1.9'))"
    assert "No module named 'gdown'" in run(code, tmp_path, check=False).stderr
    lines = served(code, tmp_path).stdout.splitlines()
    assert [line.split(";")[0].split(",")[0] for line in lines] == [
        "Host repaired: gdown is not installed",
        "Host repaired: pkg_resources is not installed",
        "True",
    ]


def test_nothing_is_said_where_nobody_asks():
    assert served("import json").stdout == ""


def test_what_a_stand_in_lacks_names_the_fix(tmp_path):
    lay(tmp_path, "dassl", DASSL)
    done = served("from dassl.data.datasets.base import download\ndownload('x')", tmp_path, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: gdown is not installed, and its stand-in has no download: pip install gdown"
    )
    code = "try:\n    from pkg_resources import declare_namespace\nexcept ImportError as error:\n    print(error)"
    assert 'pip install "setuptools<81"' in served(code).stdout


def test_the_real_package_comes_first(tmp_path):
    lay(tmp_path, "gdown", {"__init__.py": "download = 'real'"})
    code = "ABSENT = ()\nimport gdown\nprint(gdown.download)"
    assert served(code, tmp_path).stdout == "real\n"


def test_asked_twice_served_once():
    code = (
        "stand_ins.stand_in_for_absent_packages()\nprint(sum(type(f).__name__ == '_LastResort' for f in sys.meta_path))"
    )
    assert served(code).stdout == "1\n"


BY_HAND = "import sys, types\nfor name in {names!r}:\n    sys.modules[name] = types.ModuleType(name)\n"


@pytest.mark.parametrize("name", ["gdown", "pkg_resources", "wilds", "pandas"])
def test_somebody_elses_stand_in_without_a_spec(name):
    """``find_spec`` raises ValueError for such a module."""
    code = BY_HAND.format(names=[name]) + f"print(stand_ins.is_there({name!r}))\nimport {name}"
    assert served(code).stdout == "True\n"


def test_the_plugin_lives_with_such_a_stand_in():
    """A host that mends pkg_resources itself, before the plugin imports clip; and one whose Dassl is a stand-in."""
    code = BY_HAND.format(names=["pkg_resources"]) + (
        "import packaging, packaging.version\nsys.modules['pkg_resources'].packaging = packaging\n"
        "sys.path.insert(0, 'PLUGIN')\nimport capt\n"
        "from capt.backbone import stock_clip\nprint(stock_clip.clip.__name__)"
    ).replace("PLUGIN", str(ROOT / "trainers"))
    assert run(code).stdout == "clip\n"
    code = BY_HAND.format(names=["dassl"]) + f"sys.path.insert(0, {str(ROOT / 'trainers')!r})\nimport capt\nprint('in')"
    assert run(code).stdout == "in\n"


def test_the_plugins_own_import_of_clip_stays_silent():
    """Its stand-in is there for that import only, as before; the bridge announces what a host asks for."""
    code = f"sys.path.insert(0, {str(ROOT / 'trainers')!r})\nimport capt\nfrom capt.backbone import stock_clip\n"
    code += "print('pkg_resources' in sys.modules)"
    assert served(code).stdout == "False\n"
