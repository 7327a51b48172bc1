"""An installed Dassl wins, is repaired, and does what the bundled one does.

Needs a copy of Dassl: set CAPT_PEERS to a folder that holds a checkout of it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("dassl_probe.py")


@pytest.fixture(scope="module")
def dassl_copy(tmp_path_factory):
    """A copy of the real Dassl, so that nothing is written beside the original."""
    peers = os.environ.get("CAPT_PEERS")
    if not peers:
        pytest.skip("CAPT_PEERS is not set: it names a folder with a checkout of KaiyangZhou/Dassl.pytorch")
    for name in ("KaiyangZhou+Dassl.pytorch", "Dassl.pytorch"):
        source = Path(peers) / name / "dassl"
        if source.is_dir():
            target = tmp_path_factory.mktemp("dassl")
            shutil.copytree(source, target / "dassl")
            return target
    pytest.skip(f"CAPT_PEERS={peers} holds no checkout of Dassl.pytorch")
    return None


def python(*args):
    """Run a Python that finds no other Dassl than the one it is given; return its stdout."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def probed(dassl_copy, tmp_path_factory):
    """Output and findings of the probe with the real and with the bundled Dassl."""
    result = {}
    for name, folder in (("installed", dassl_copy), ("bundled", "")):
        out = python(PROBE, ROOT, folder, tmp_path_factory.mktemp(name))
        result[name] = out, json.loads(out.split("PROBE ")[1])
    return result


def test_the_installed_one_wins(probed):
    assert {name: found["dassl"] for name, (_, found) in probed.items()} == {n: n for n in probed}


def test_repairs_are_announced(probed):
    lines = [line for line in probed["installed"][0].splitlines() if line.startswith("Dassl repaired: ")]
    needed = ["warm-up schedules no longer pass verbose", "restricted unpickler", "drives the live optimiser", "np.int"]
    if "wilds" in probed["installed"][0]:
        needed.insert(0, "wilds is not installed")
    assert len(lines) == len(needed)
    assert all(text in line for text, line in zip(needed, lines, strict=True))
    assert "Dassl repaired" not in probed["bundled"][0]


@pytest.mark.parametrize(
    "part",
    [
        "config",
        "samplers",
        "order, 0 workers, first epoch",
        "order, 1 worker, three epochs",
        "rates",
        "transforms",
        "evaluation",
        "few-shot",
    ],
)
def test_bundled_equals_installed(probed, part):
    assert probed["bundled"][1][part] == probed["installed"][1][part]


def test_optimisers_equal(probed):
    for name, expected in probed["installed"][1]["optimisers"].items():
        assert probed["bundled"][1]["optimisers"][name] == pytest.approx(expected, rel=1e-6), name


REPAIRED = """
import sys, tempfile
sys.path[:0] = [{root!r}, {dassl!r}]
import compat, torch
from dassl.config import get_cfg_default
from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, resume_from_checkpoint, save_checkpoint

cfg = get_cfg_default().OPTIM
cfg.NAME, cfg.LR, cfg.LR_SCHEDULER, cfg.MAX_EPOCH, cfg.WARMUP_EPOCH = "sgd", 1.0, "cosine", 6, 1
cfg.WARMUP_TYPE = "constant"

def build():
    model = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(model, cfg)
    return model, optimizer, build_lr_scheduler(optimizer, cfg)

def advance(optimizer, scheduler):
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    scheduler.step()
    return round(rate, 6)

model, optimizer, scheduler = build()
for _ in range(3):
    advance(optimizer, scheduler)
pickled = {{k: v for k, v in vars(scheduler).items() if k != "optimizer"}}
for state in (scheduler.state_dict(), pickled):
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint({{"state_dict": model.state_dict(), "epoch": 3, "optimizer": optimizer.state_dict(),
                         "scheduler": state, "val_result": None}}, folder)
        plain = state is not pickled
        if plain:
            torch.load(folder + "/model.pth.tar-3", weights_only=True)
        other, other_optimizer, other_scheduler = build()
        assert resume_from_checkpoint(folder, other, other_optimizer, other_scheduler) == 3
        assert torch.equal(other.weight, model.weight)
        print("RATES", [advance(other_optimizer, other_scheduler) for _ in range(3)])
"""


def test_repaired_dassl_resumes_with_warm_up(dassl_copy):
    out = python("-c", REPAIRED.format(root=str(ROOT), dassl=str(dassl_copy)))
    assert out.count("RATES [0.75, 0.5, 0.25]") == 2


AUGMENTED = """
import sys
sys.path[:0] = [{root!r}, {dassl!r}]
import compat
import numpy as np
from dassl.data.transforms.autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from dassl.data.transforms.randaugment import SolarizeAdd
from PIL import Image

image = Image.fromarray(np.array([[[0, 100, 250]]], dtype=np.uint8))
print("ADDED", np.array(SolarizeAdd(image, 20, 128)).tolist())
for policy in (ImageNetPolicy(), CIFAR10Policy(), SVHNPolicy()):
    policy(image.resize((8, 8)))
"""


def test_repaired_dassl_augments(dassl_copy):
    """20 more, clipped to 255; what is 128 or above is inverted: 20, 120, 255 -> 20, 120, 0."""
    out = python("-c", AUGMENTED.format(root=str(ROOT), dassl=str(dassl_copy)))
    assert "ADDED [[[20, 120, 0]]]" in out


def test_repairs_change_no_file(probed, dassl_copy):
    source = next(p for p in Path(os.environ["CAPT_PEERS"]).glob("*Dassl.pytorch/dassl"))
    files = sorted(p.relative_to(source) for p in source.rglob("*.py"))
    assert files
    assert all((source / f).read_bytes() == (dassl_copy / "dassl" / f).read_bytes() for f in files)


PLUGIN = """
import sys
sys.path[:0] = [{plugin!r}, {dassl!r}]
{order}
from dassl.config import get_cfg_default
cfg = get_cfg_default()
capt.extend_cfg(cfg)
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import load_checkpoint
print("CAPT" in TRAINER_REGISTRY.registered_names(), cfg.TRAINER.CAPT.BASE.NAME, load_checkpoint.__module__)
"""


@pytest.fixture(scope="module")
def installed_plugin(tmp_path_factory):
    """What pip puts into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "trainers" / "capt", folder / "capt")
    shutil.copytree(ROOT / "compat", folder / "capt_compat")
    return folder


@pytest.mark.parametrize(
    "order", ["import capt", "import capt_compat, capt", f"sys.path.append({str(ROOT)!r}); import compat, capt"]
)
def test_two_lines_suffice_for_an_installed_plugin(order, dassl_copy, installed_plugin):
    out = python("-c", PLUGIN.format(plugin=str(installed_plugin), dassl=str(dassl_copy), order=order))
    assert out.splitlines()[-1].startswith("True ZeroshotCLIP ")
    assert "bundled_dassl" in out.splitlines()[-1]
    assert out.count("Dassl repaired: checkpoints") == 1
    assert out.count("Dassl repaired: warm-up") == 1
