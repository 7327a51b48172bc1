"""A small CLIP with a grid of 4 x 4 patches, CAPT models on it, and a data set of small pictures as files."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))

import tiny  # noqa: E402

from trainers.capt.backbone.layout import patch_layout  # noqa: E402
from trainers.capt.backbone.prompted_clip import PromptedCLIP, load_clip  # noqa: E402
from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews  # noqa: E402
from trainers.capt.bank.pair_features import PairFeatures  # noqa: E402
from trainers.capt.bank.prompt_library import PairEncoder, PromptLibrary  # noqa: E402
from trainers.capt.bases.learners import BaseSpec, build_base  # noqa: E402
from trainers.capt.method.model import CAPTModel, CAPTSettings  # noqa: E402

SIDE, PATCH, GRID = 32, 8, 4
CLASSES = ["cup", "jug", "vase", "red_fox", "otter"]
NEW_CLASSES = ["kite", "wrench", "sea view", "cup", "anchor", "lotus", "yin yang"]


def clip_state(seed=0):
    """The trainers' small CLIP with patches of 8 pixels and two blocks a tower."""
    state = {k: v for k, v in tiny.clip_state(seed).items() if ".resblocks.2." not in k}
    source, width = np.random.RandomState(seed + 100), tiny.VISUAL_WIDTH
    state["visual.conv1.weight"] = tiny._normal(source, width, 3, PATCH, PATCH, std=0.05)
    state["visual.positional_embedding"] = tiny._normal(source, GRID**2 + 1, width, std=width**-0.5)
    return state


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed=0):
    """Normalised random features."""
    return normalize(torch.randn(*shape, generator=generator(seed)), dim=-1)


def images(num, seed=0):
    return torch.randn(num, 3, SIDE, SIDE, generator=generator(seed))


def make_base(clip_path, spec=None):
    return build_base(PromptedCLIP(load_clip(str(clip_path))), spec or BaseSpec())


def pair_features(base, classnames, max_gigabytes=0.5):
    encode = PairEncoder(PromptLibrary("no folder", "none"), base.encode_sentences)
    return PairFeatures(classnames, encode, base.embed_dim, max_gigabytes).to(base.text_features.device)


def serve(model, classnames, bank=None):
    model.set_classes(classnames, pair_features(model.base, classnames), bank)


def make_model(base, classnames=CLASSES, bank=None, **settings):
    """A CAPT model in eval mode that serves these classes."""
    torch.manual_seed(0)
    model = CAPTModel(base, CAPTSettings(**settings)).eval()
    serve(model, classnames, bank)
    return model


def encode(base, pixels):
    """(z, cls, tokens) as the trainer makes them."""
    features = base.encode_image(pixels)
    return normalize(features.feature.float(), dim=-1), features.cls, features.tokens


def make_bank(base, classnames=CLASSES, num_images=20, seed=5):
    """A bank of random pictures with random labels, judged by the base: most of them are confused."""
    base.set_classes(classnames)
    z, cls, tokens = encode(base, images(num_images, seed))
    label = torch.arange(num_images) % len(classnames)
    probs = (5 * torch.rand(num_images, len(classnames), generator=generator(seed))).softmax(dim=-1)
    tokens = {} if tokens is None else {"tokens": tokens, "layout": patch_layout(tokens)}
    views = JudgedViews.of(probs, label, z, cls=cls, **tokens)
    return ConfusionBank.build(classnames, [f"train/{i}.png" for i in range(num_images)], [views])


@torch.no_grad()
def stir(model, seed=3, std=0.3):
    """Move every trained parameter away from its start, so that nothing is zero any more."""
    source = generator(seed)
    for parameter in model.refiner.parameters():
        parameter.add_(std * torch.randn(parameter.shape, generator=source).reshape(parameter.shape) / 4)


def draw_pictures(folder, classnames, per_class, seed=0):
    """Small PNG files, one colour and one stripe a class with noise: learnable, and confusable by a random CLIP."""
    source = np.random.RandomState(seed)
    paths = {}
    for c, name in enumerate(classnames):
        paths[name] = []
        for i in range(per_class):
            pixels = source.randint(0, 90, (SIDE, SIDE, 3))
            pixels[:, :, c % 3] += 80
            pixels[(4 * c) % SIDE : (4 * c) % SIDE + 6] += 60
            path = Path(folder) / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            paths[name].append(str(path))
    return paths
