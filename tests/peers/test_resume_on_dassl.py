"""CAPT stopped by signals and gone on with, on upstream Dassl, which knows nothing of either."""

import os
from pathlib import Path

import hosts
import pytest

PEERS = Path(os.environ.get("CAPT_PEERS") or "/nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PEERS / hosts.DASSL).is_dir(), reason=f"CAPT_PEERS names no folder with a copy of {hosts.DASSL}"
    ),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("views", [2, 0])
def test_stopped_and_gone_on_with(views, workers, tmp_path):
    check(PEERS / hosts.DASSL, views, workers, tmp_path)


@pytest.mark.parametrize("version", ["0.4.3", "0.5.0", "0.6.0", "0.6.1"])
def test_stopped_and_gone_on_with_on_an_older_one(version, tmp_path):
    dassl = PEERS / "dassl_versions" / version
    if not dassl.is_dir():
        pytest.skip(f"there is no {dassl}")
    check(dassl, 0, 2, tmp_path)


def check(dassl, views, workers, tmp_path):
    keys = ("TRAINER.CAPT.CACHE.VIEWS", views, "DATALOADER.NUM_WORKERS", workers)
    done = hosts.python(hosts.ROOT, "tests/peers/stop_and_resume.py", tmp_path, *keys, dassl=dassl)
    assert done.stdout.splitlines()[-1] == "SAME installed"
    assert "Resuming behind epoch 1 and 2 batches of the next" in done.stdout
