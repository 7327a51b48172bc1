"""Base models are what their methods' own code computes, on classes of the training and on others.

Needs copies of the repositories; ``CAPT_PEERS`` names the folder that holds them (``run_bases.METHODS``).
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trainers")]

import run_bases  # noqa: E402
import tiny  # noqa: E402

from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip  # noqa: E402
from trainers.capt.bases.learners import BaseSpec, build_base  # noqa: E402
from trainers.capt.bases.templates import template_of  # noqa: E402

PEERS = Path(os.environ.get("CAPT_PEERS") or "/nowhere")
NAMES = {"CoOp_ATP": "ATPrompt", "MaPLe_ATP": "ATPrompt"}  # how a method is called here, where it has another name
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CAPT_PEERS"), reason="CAPT_PEERS names no folder with copies"),
]


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(tiny.clip_state(num_blocks=run_bases.NUM_BLOCKS), path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """``runs(method)`` gives the folder of what the method's own code left."""
    folder = tmp_path_factory.mktemp("originals")

    def run(method):
        if not (PEERS / run_bases.METHODS[method][0]).is_dir():
            pytest.skip(f"{PEERS} holds no {run_bases.METHODS[method][0]}")
        if not (folder / method).is_dir():
            command = [sys.executable, str(HERE / "run_bases.py"), str(PEERS), method, str(folder / method)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr[-2000:]
        return folder / method

    return run


@pytest.mark.parametrize("case", run_bases.CASES)
def test_logits_are_the_methods_own(case, runs, clip_path):
    method, keys, options = run_bases.CASES[case]
    folder, dataset = runs(method), dict(zip(keys[::2], keys[1::2], strict=True)).get("DATASET.NAME", "Caltech101")
    name, template = NAMES.get(method, method), template_of(dataset)
    spec = BaseSpec(name, str(folder / case), template=template, options=options, dataset=dataset)
    base = build_base(PromptedCLIP(load_clip(str(clip_path))), spec)
    base.trained_on = tiny.CLASS_NAMES
    with np.load(folder / f"{case}.npz") as theirs:
        for half, class_names in (("base", tiny.CLASS_NAMES), ("new", run_bases.NEW_CLASSES)):
            base.set_classes(class_names)
            features = base.encode_image(tiny.batch()["img"])
            z = normalize(features.feature.float(), dim=-1)
            np.testing.assert_allclose(base.logits(z), theirs[half], rtol=1e-5, atol=1e-5, err_msg=half)
            torch.testing.assert_close(normalize(base.project(features.cls), dim=-1), z, rtol=1e-5, atol=1e-5)
