"""The training and test transforms from the INPUT node. The order is fixed here, not by the list in the config."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    GaussianBlur,
    InterpolationMode,
    Normalize,
    RandomApply,
    RandomCrop,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from yacs.config import CfgNode

__all__ = ["INTERPOLATION_MODES", "build_transform"]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

Step = Callable[[Any], Any]  # of an image, or of its tensor

# What the bundled subset offers, in the order of application.
OFFERED = (
    "random_translation random_crop random_resized_crop random_flip colorjitter randomgrayscale gaussian_blur cutout "
    "normalize gaussian_noise instance_norm center_crop"
).split()

# A stand-in from another library would draw other operations under the same name, so these are refused.
NEEDS_DASSL = "cifar10_policy imagenet_policy svhn_policy randaugment randaugment2 randaugment_fixmatch".split()


class RandomTranslation:
    """With probability 0.5 enlarge by 1/8 and crop at random, else only resize (always bilinear).

    Args:
        size: ``(H, W)`` of the result.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.resize = Resize(size)
        self.enlarge = Resize([round(side * 1.125) for side in size])
        self.crop = RandomCrop(size)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the moved PIL image."""
        if random.uniform(0, 1) > 0.5:
            return self.resize(image)
        return self.crop(self.enlarge(image))


class Cutout:
    """Set ``n_holes`` squares of an image tensor ``(3, H, W)`` to 0, in place; squares are cut at the borders."""

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image with holes."""
        height, width = image.shape[-2:]
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)  # noqa: NPY002
            top, left = max(y - self.length // 2, 0), max(x - self.length // 2, 0)
            image[..., top : y + self.length // 2, left : x + self.length // 2] = 0
        return image


class GaussianNoise:
    """With probability ``p`` add normal noise to an image tensor."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean, self.std, self.p = mean, std, p

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, noisy or not."""
        if random.uniform(0, 1) > self.p:
            return image
        return image + torch.randn_like(image) * self.std + self.mean


class InstanceNormalization:
    """Bring each channel of each image ``(3, H, W)`` to mean 0 and standard deviation 1."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return the normalised image."""
        mean = image.mean((1, 2), keepdim=True)
        std = image.std((1, 2), keepdim=True)
        return (image - mean) / (std + 1e-8)


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> Step | None:
    """Build the transform of the INPUT node and print its steps.

    Args:
        cfg: Configuration.
        is_train: Training or test transform.
        choices: Names to use instead of INPUT.TRANSFORMS.

    Returns:
        torchvision ``Compose`` from PIL image to tensor ``(3, H, W)``, or None with INPUT.NO_TRANSFORM.

    Raises:
        AssertionError: Unknown name.
        NotImplementedError: A name that only a full Dassl offers.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    _check_choices(choices)
    print(f"Building transform_{'train' if is_train else 'test'}")
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices)
    return Compose(list(steps))


def _check_choices(choices: Sequence[str]) -> None:
    for name in choices:
        known = OFFERED + NEEDS_DASSL
        assert name in known, f"INPUT.TRANSFORMS holds {name!r}; known are {known}"
        if name in NEEDS_DASSL:
            raise NotImplementedError(
                f"the transform {name} is not part of the bundled Dassl; install Dassl "
                "(https://github.com/KaiyangZhou/Dassl.pytorch) to use it"
            )


def _train_steps(cfg: CfgNode, choices: Sequence[str]) -> Iterator[Step]:
    """Yield the training steps in their fixed order, printing each."""
    size, mode = cfg.SIZE, INTERPOLATION_MODES[cfg.INTERPOLATION]
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        print(f"+ resize to {size[0]}x{size[1]}")
        yield Resize(size, interpolation=mode)
    if "random_translation" in choices:
        print("+ random translation")
        yield RandomTranslation(size)
    if "random_crop" in choices:
        print(f"+ random crop (padding = {cfg.CROP_PADDING})")
        yield RandomCrop(size, padding=cfg.CROP_PADDING)
    if "random_resized_crop" in choices:
        print(f"+ random resized crop (size={size}, scale={cfg.RRCROP_SCALE})")
        yield RandomResizedCrop(size, scale=cfg.RRCROP_SCALE, interpolation=mode)
    if "random_flip" in choices:
        print("+ random flip")
        yield RandomHorizontalFlip()
    yield from _colour_steps(cfg, choices)
    print("+ to torch tensor of range [0, 1]")
    yield ToTensor()
    if "cutout" in choices:
        print(f"+ cutout (n_holes={cfg.CUTOUT_N}, length={cfg.CUTOUT_LEN})")
        yield Cutout(cfg.CUTOUT_N, cfg.CUTOUT_LEN)
    if "normalize" in choices:
        yield _normalize(cfg)
    if "gaussian_noise" in choices:
        print(f"+ gaussian noise (mean={cfg.GN_MEAN}, std={cfg.GN_STD})")
        yield GaussianNoise(cfg.GN_MEAN, cfg.GN_STD)
    if "instance_norm" in choices:
        print("+ instance normalization")
        yield InstanceNormalization()


def _colour_steps(cfg: CfgNode, choices: Sequence[str]) -> Iterator[Step]:
    if "colorjitter" in choices:
        b, c, s, h = cfg.COLORJITTER_B, cfg.COLORJITTER_C, cfg.COLORJITTER_S, cfg.COLORJITTER_H
        print(f"+ color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})")
        yield ColorJitter(brightness=b, contrast=c, saturation=s, hue=h)
    if "randomgrayscale" in choices:
        print("+ random gray scale")
        yield RandomGrayscale(p=cfg.RGS_P)
    if "gaussian_blur" in choices:
        print(f"+ gaussian blur (kernel={cfg.GB_K})")
        yield RandomApply([GaussianBlur(cfg.GB_K)], p=cfg.GB_P)


def _test_steps(cfg: CfgNode, choices: Sequence[str]) -> Iterator[Step]:
    size, mode = cfg.SIZE, INTERPOLATION_MODES[cfg.INTERPOLATION]
    print(f"+ resize the smaller edge to {max(size)}")
    yield Resize(max(size), interpolation=mode)
    print(f"+ {size[0]}x{size[1]} center crop")
    yield CenterCrop(size)
    print("+ to torch tensor of range [0, 1]")
    yield ToTensor()
    if "normalize" in choices:
        yield _normalize(cfg)
    if "instance_norm" in choices:
        print("+ instance normalization")
        yield InstanceNormalization()


def _normalize(cfg: CfgNode) -> Step:
    print(f"+ normalization (mean={cfg.PIXEL_MEAN}, std={cfg.PIXEL_STD})")
    return Normalize(mean=cfg.PIXEL_MEAN, std=cfg.PIXEL_STD)
