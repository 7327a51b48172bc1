"""What a process imports before its first image: torch's compiler, say, only where somebody wants it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dassl.utils import collect_env_info, tools
from torch.utils import collect_env

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch._dynamo", "sympy", "triton", "scipy", "sklearn", "pandas", "matplotlib", "torchvision.ops.misc"}


def modules_behind(code, *argv):
    """Which modules a fresh process has loaded when it has run ``code``, and what it printed."""
    code = f"import sys, json, atexit; atexit.register(lambda: print('\\0', json.dumps(list(sys.modules))))\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=False)
    out, _, loaded = done.stdout.rpartition("\0")
    assert loaded, done.stderr
    return set(json.loads(loaded)), out, done


def test_train_imports_nothing_that_it_may_not_need():
    loaded, _, done = modules_behind("import train")
    assert done.returncode == 0, done.stderr
    assert {"torch", "torchvision.transforms", "trainers.capt"} <= loaded
    assert not loaded & HEAVY


def test_torchvisions_own_parts_are_there_when_they_are_wanted():
    code = """import compat, torch, torchvision
from torchvision.ops import nms
boxes = torch.tensor([[0., 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]])
assert nms(boxes, torch.tensor([.5, .9, .1]), .5).tolist() == [1, 2]
assert torchvision.models.resnet18(weights=None).fc.out_features == 1000"""
    loaded, _, done = modules_behind(code)
    assert done.returncode == 0, done.stderr
    assert "torch._dynamo" in loaded


# A torchvision in small, whose modules say when they run

SMALL = {
    "__init__.py": "from . import models, ops\n",
    "models/__init__.py": "print('models')\nfrom .resnet import *\nfrom ..ops import nms as used\n",
    "models/resnet.py": "print('resnet')\n__all__ = ['net']\ndef net(): return 18\n",
    "ops/__init__.py": "import time\nprint('ops')\nfrom .boxes import nms\ntime.sleep(0.05)\nlast = 1\n",
    "ops/boxes.py": "print('boxes')\ndef nms(): return 'kept'\n",
}
# What is asked for -> what runs, in this order, and once.
ASKED = {
    "import torchvision.models, torchvision.ops": "",
    "import torchvision; assert torchvision.models.net() == 18": "models resnet ops boxes",
    "from torchvision.models import net; assert net() == 18": "models resnet ops boxes",
    "from torchvision import ops; assert ops.nms() == 'kept'": "ops boxes",
    "import torchvision.models.resnet as r; assert r.net() == 18": "resnet models ops boxes",
    "import torchvision.models.resnet; import torchvision.models.resnet": "resnet",
    "from torchvision import models; assert models.__dict__['net']() == 18": "models resnet ops boxes",
    "from torchvision.models import *; assert net() == 18": "models resnet ops boxes",
    "import torchvision.ops as o, inspect; assert 'nms' in dict(inspect.getmembers(o))": "ops boxes",
    "import torchvision.ops as o, importlib; assert o.nms and importlib.reload(o) is o and o.last": "ops boxes ops",
    "import torchvision.ops as o; assert type(o.nms).__name__ == 'function' and type(o) is type(sys)": "ops boxes",
    "import torchvision.ops as o; from concurrent.futures import ThreadPoolExecutor as Pool\n"
    "assert list(Pool(8).map(lambda _: o.last, range(8))) == [1] * 8": "ops boxes",
}


def lay(folder, files):
    for path, text in files.items():
        (folder / "torchvision" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "torchvision" / path).write_text(text)


@pytest.mark.parametrize("code", ASKED)
def test_modules_run_once_and_when_they_are_asked_for_anything(tmp_path, code):
    lay(tmp_path, SMALL)
    _, out, done = modules_behind(f"import compat; sys.path.insert(0, {str(tmp_path)!r})\n{code}")
    assert done.returncode == 0, done.stderr
    assert out.split() == ASKED[code].split()


def test_a_package_that_cannot_be_run_says_so_every_time(tmp_path):
    lay(tmp_path, {**SMALL, "ops/__init__.py": "print('tried')\nimport no_such_module\n"})
    code = f"import compat; sys.path.insert(0, {str(tmp_path)!r}); import torchvision.ops\n"
    code += "for _ in range(2):\n  try: torchvision.ops.nms\n  except ModuleNotFoundError as error: print(error.name)"
    _, out, done = modules_behind(code)
    assert (done.returncode, out.split()) == (0, ["tried", "no_such_module"] * 2), done.stderr


def test_a_torchvision_that_came_first_is_left_alone(tmp_path):
    lay(tmp_path, SMALL)
    code = f"sys.path.insert(0, {str(tmp_path)!r}); import torchvision; before = torchvision.models; import compat\n"
    _, out, done = modules_behind(f"{code}import torchvision.models as m; assert m is before and type(m) is type(sys)")
    assert (done.returncode, out.split()) == (0, ["models", "resnet", "ops", "boxes"]), done.stderr


@pytest.mark.parametrize("how", ["runpy.run_path('train.py', run_name='__main__')", "cli.main()"])
@pytest.mark.parametrize(("word", "code", "said"), [("--help", 0, "--root ROOT"), ("--rot", 2, "arguments: --rot")])
def test_help_and_mistyped_flags_are_answered_without_torch(how, word, code, said):
    argv = [*(["train"] if "cli" in how else []), word]
    loaded, out, done = modules_behind(f"import runpy; from capt_tools import cli; {how}", *argv)
    assert (done.returncode, said in (done.stderr if code else out)) == (code, True), done.stderr
    assert not loaded & {"torch", "numpy", "dassl", "trainers"}


# The system's information


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip to compare with")
def test_information_is_torchs_own_to_the_letter():
    ours, _, pillow = collect_env_info().rpartition("\n")
    assert ours == collect_env.get_pretty_env_info()
    assert pillow.startswith("        Pillow (")


def test_information_is_had_without_pip(monkeypatch):
    def refuse(command):
        assert "pip" not in str(command)
        return 1, "", ""

    monkeypatch.setattr(collect_env, "run", refuse)
    before = collect_env.get_pip_packages
    assert f"[pip3] torch=={torch.__version__.partition('+')[0]}" in collect_env_info()
    assert collect_env.get_pip_packages is before


def test_packages_are_listed_as_pip_lists_them(tmp_path, monkeypatch):
    for folder, file, text in [
        ("near", "b_b-1.dist-info", "Name: b_b\nVersion: 1"),
        ("near", "B.a-2.dist-info", "Name: B.a\nVersion: 2"),
        ("near", "a-3.dist-info", "Name: A\nVersion: 3"),
        ("near", "gone-4.dist-info", ""),  # half deleted
        ("far", "a-5.dist-info", "Name: a\nVersion: 5"),  # hidden by the one before it
    ]:
        path = tmp_path / folder / file / "METADATA"
        path.parent.mkdir(parents=True)
        path.write_text(f"Metadata-Version: 2.1\n{text}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "near"), str(tmp_path / "far")])
    assert tools._pip_list("pip") == (0, "A==3\nB.a==2\nb_b==1", "")
