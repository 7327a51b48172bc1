"""16-bit pictures in other people's repositories: a run of CAPT reads them right on the host's own Dassl, too."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trainers")]

import hosts  # noqa: E402
import tiny  # noqa: E402

from trainers.capt import load  # noqa: E402

PEERS = Path(os.environ.get("CAPT_PEERS") or "/nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PEERS / hosts.DASSL).is_dir(), reason="CAPT_PEERS names no folder with a copy of Dassl"),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The hosts' data, every picture as grey of 16 bits, and a small CLIP."""
    folder = tmp_path_factory.mktemp("wide")
    hosts.draw_caltech(folder / "data")
    for path in sorted((folder / "data").rglob("*.jpg")):
        with Image.open(path) as image:
            values = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(values).save(path, format="PNG")
    torch.save(tiny.clip_state(), folder / "clip.pt")
    return folder


def test_the_hosts_loaders_and_capt_load_agree(wide, tmp_path):
    if not (PEERS / hosts.HOSTS[0]).is_dir():
        pytest.skip(f"{PEERS} holds no {hosts.HOSTS[0]}")
    copy = hosts.copy_host(PEERS, hosts.HOSTS[0], tmp_path / "host")
    hosts.python(hosts.ROOT, "scripts/drop_in.py", copy)
    out = tmp_path / "out"
    flags = hosts.flags(wide / "data", wide / "clip.pt", out, "CAPT")
    hosts.python(copy, "train.py", *flags, dassl=PEERS / hosts.DASSL)
    with np.load(out / "predictions.npz") as stored:
        probs, paths = stored["probs"], stored["impaths"]
    assert len(np.unique(probs.round(5), axis=0)) > len(probs) // 2  # white pictures would all be the same
    logits = load(out, device="cpu").logits([wide / "data" / path for path in paths])
    np.testing.assert_allclose(logits.softmax(dim=-1).numpy(), probs, atol=1e-5)
