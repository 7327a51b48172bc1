"""Makes ``dassl`` importable, keeps the tests on few cores, and finds the shared data."""

import os
import signal
import sys
from pathlib import Path

# Before torch is imported: many tests run side by side, and none is large enough to gain from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "trainers"))  # else `import capt` finds the folder tests/capt where the plugin is a link

import compat  # noqa: E402, F401 - makes `import dassl` work

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


# Whoever starts the tests in the background, or by nohup, has these ignored, and so would the processes under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data (Caltech101, CoOp's split files, a small CLIP), beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; tests on real photographs need it")
    return folder


@pytest.fixture
def seen(monkeypatch):
    """Numbers of images that a tower looked at, batch by batch."""
    from trainers.capt.backbone import prompted_clip

    batches, encode = [], prompted_clip.encode_image_with

    def count(visual, images, *prompts):
        batches.append(len(images))
        return encode(visual, images, *prompts)

    monkeypatch.setattr(prompted_clip, "encode_image_with", count)
    return batches


@pytest.fixture(autouse=True)
def _pipes_as_before():
    """Scripts let a broken pipe end their process, which is not to be that of the tests behind."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)
