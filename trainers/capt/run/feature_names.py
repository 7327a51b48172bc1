"""What a stored feature's numbers depend on, as the name of its file.

Rounding depends on what is computed together: a matrix product may round an image's row otherwise in a batch of another
size, with other threads, on another device. All of that is part of the name, so that what is read is what would be
computed, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import PIL
import torch
import torchvision

from ..backbone.digest import tower_digest
from ..backbone.prompted_clip import PromptedCLIP
from .files import relative_path
from .views import ViewDataset

if TYPE_CHECKING:
    from clip.model import ModifiedResNet

__all__ = ["FeatureNames", "class_token_width", "token_bytes"]

FORMAT = 1


def class_token_width(tower: PromptedCLIP) -> int:
    """Dv of the class token; of a ResNet, of what its attention pool reads, which stands in for it."""
    if tower.width is not None:
        return tower.width
    return cast("ModifiedResNet", tower.clip.visual).attnpool.get_parameter("positional_embedding").shape[1]


def token_bytes(tower: PromptedCLIP) -> int:
    """What class and patch tokens of one view of an image take; a ResNet has no patch tokens."""
    return ((tower.grid or 0) ** 2 + 1) * class_token_width(tower) * torch.finfo(tower.dtype).bits // 8


@dataclass(frozen=True)
class FeatureNames:
    """Names of the features of some images.

    Attributes:
        images: which they are, and their views.
        files: path, size and time of change of each; paths count from the data's root, so that the data may move.
        common: what is the same for all of them.
    """

    images: ViewDataset
    files: list[list[Any]]
    common: dict[str, Any]

    @classmethod
    def of(
        cls, tower: PromptedCLIP, images: ViewDataset, root: str, batch_size: int, device: torch.device
    ) -> FeatureNames | None:
        """The names, or None where a transform does not say what it does (its text is an address in memory)."""
        looks = [_told(images.test_transform)]
        looks += [_told(images.train_transform)] if images.num_views > 1 else []
        reader = images.read_image
        if None in looks or (where := getattr(reader, "__qualname__", None)) is None:
            return None
        common = {
            "format": FORMAT,
            "tower": [tower_digest(tower.clip.visual), tower.design],
            "batch_size": batch_size,
            "reader": f"{reader.__module__}.{where}",
            "looks": looks[:1],
            "machine": _machine(device),
            "versions": [torch.__version__, torchvision.__version__, PIL.__version__],
        }
        files = [_file(images.data_source[index].impath, root) for index in images.images]
        return cls(images, files, common | {"augmented": looks[1:]})

    def name(self, places: Iterable[int], view: int) -> str:
        """Of one view of the images at ``places``."""
        about = {key: value for key, value in self.common.items() if key != ("looks" if view else "augmented")}
        if view:
            about |= {"seed": self.images.seed, "view": view}
        about["images"] = [self.files[place] + ([self.images.images[place]] if view else []) for place in places]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


def _file(path: str, root: str) -> list[Any]:
    name = relative_path(path, root)
    if not os.path.exists(path):  # the reader will say so better
        return [name]
    file = os.stat(path)
    return [name, file.st_size, file.st_mtime_ns]


def _told(transform: Any) -> str | None:
    text = repr(transform)
    return None if re.search(r"\bat 0x[0-9a-f]+", text) else text


def _machine(device: torch.device) -> list[Any]:
    matmul = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.backends.cudnn.version(), matmul]
    return [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), matmul]
