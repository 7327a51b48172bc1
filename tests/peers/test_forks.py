"""Every fork of CLIP that the copies hold gives the features of the stock CLIP when it is walked from outside.

``CAPT_PEERS`` names a folder with copies of repositories, called <owner>+<name>.
"""

import importlib
import inspect
import os
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

from trainers.capt.backbone import stock_clip  # noqa: E402
from trainers.capt.backbone.prompted_clip import PromptedCLIP  # noqa: E402

PEERS = Path(os.environ.get("CAPT_PEERS") or "/nowhere")
FORKS = sorted(path.relative_to(PEERS) for depth in ("*", "*/*") for path in PEERS.glob(f"{depth}/clip*/model.py"))
PLAIN = {"trainer": "CoOp", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
# Forks whose blocks are not CLIP's: what they want of a block, no other CLIP has.
OTHER = {
    "AtsuMiyai+LoCoOp/clip_w_local": "not certain",  # x, q, k, v of one shape
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FORKS, reason="CAPT_PEERS names no folder with copies of repositories"),
]


def import_alone(path):
    """A fork's model.py, in a package of its own name, without what its clip/__init__.py imports."""
    package = types.ModuleType("fork_of_" + re.sub(r"\W", "_", str(path.parent)))
    package.__path__ = [str(path.parent)]
    sys.modules[package.__name__] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"{package.__name__}.model")


def build(module, state):
    build_model = module.build_model
    more = [PLAIN] if "design_details" in inspect.signature(build_model).parameters else []
    return build_model(dict(state), *more).float().eval()


@pytest.mark.parametrize("tower", ["ViT", "ResNet"])
@pytest.mark.parametrize("fork", FORKS, ids=str)
@torch.no_grad()
def test_features_as_stock(fork, tower):
    try:
        module = import_alone(PEERS / fork)
    except ImportError as error:
        pytest.skip(f"it imports what is not here: {error}")
    state = tiny.clip_state() if tower == "ViT" else tiny.resnet_state()
    try:
        clip = build(module, state)
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        pytest.skip(f"it builds no plain CLIP with a {tower}: {type(error).__name__}: {str(error)[:80]}")
    pixels = tiny.batch()["img"]
    stock = PromptedCLIP(stock_clip.build_clip(state).float().eval())
    fork_clip = PromptedCLIP(clip)
    texts = ["a photo of a cup.", "otter"]
    if str(fork.parent) in OTHER:
        with pytest.raises(ValueError, match=OTHER[str(fork.parent)]):
            fork_clip.text_features(texts)
        return
    torch.testing.assert_close(fork_clip.encode_image(pixels).feature, stock.encode_image(pixels).feature)
    torch.testing.assert_close(fork_clip.text_features(texts), stock.text_features(texts))
