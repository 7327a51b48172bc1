"""Every method's own train.py, then CAPT on what it left: the base model gets as many images right as the host's test.

Needs copies of the repositories; ``CAPT_PEERS`` names the folder that holds them (``base_runs.RUNS``).
"""

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trainers")]

import base_runs  # noqa: E402
import hosts  # noqa: E402
import tiny  # noqa: E402

import trainers.capt as capt  # noqa: E402

PEERS = Path(os.environ.get("CAPT_PEERS") or "/nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("CAPT_PEERS"), reason="CAPT_PEERS names no folder with copies"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    hosts.draw_caltech(folder / "data")
    torch.save(tiny.clip_state(num_blocks=10), folder / "clip.pt")
    return base_runs.Place(PEERS, folder / "data", folder / "clip.pt", hosts.SIDE, folder / "out")


@pytest.mark.parametrize("method", base_runs.RUNS)
def test_the_base_model_is_the_hosts(method, place):
    run = base_runs.RUNS[method]
    if not (PEERS / run.repository).is_dir():
        pytest.skip(f"{PEERS} holds no {run.repository}")
    theirs, ours = base_runs.host_runs(place, run), base_runs.capt_runs(place, run)
    assert {half: (base, of) for half, (base, _, of) in ours.items()} == theirs
    served = capt.load(place.out / run.trainer / "capt")
    pictures = sorted((place.data / "caltech-101" / "101_ObjectCategories" / "airplanes").glob("*.jpg"))[:2]
    answers = served.predict(pictures, class_names=["bass", "barrel"], top_k=1)
    assert all(answer.class_name in ("bass", "barrel") for answer in answers)
