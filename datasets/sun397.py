"""SUN397 (Xiao et al., 2010): 397 scenes."""

import random

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import SPLIT_SEED, FewShotDataset
from .splits import Items, make_datum


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """CoOp's SUN397: 15,880 train, 3,970 val (20 % of the first official training list), 19,850 test images."""

    dataset_dir = "sun397"
    image_folder = "SUN397"
    split_file = "split_zhou_SUN397.json"

    def read_data(self) -> tuple[Items, Items, Items]:
        label_of = {name: label for label, name in enumerate(self.read_lines("ClassName.txt"))}
        train, val = self.split_trainval(self._read_list("Training_01.txt", label_of), rng=random.Random(SPLIT_SEED))
        return train, val, self._read_list("Testing_01.txt", label_of)

    def _read_list(self, name: str, label_of: dict[str, int]) -> Items:
        """Read lines ``/a/apartment_building/outdoor/sun_aaa.jpg``; folders are classes."""
        items = []
        for line in self.read_lines(name):
            folder = line.rpartition("/")[0]
            items.append(make_datum(f"{self.image_dir}{line}", label_of[folder], _scene(folder)))
        return items


def _scene(folder: str) -> str:
    """``/a/apartment_building/outdoor`` -> ``outdoor apartment_building``."""
    return " ".join(reversed(folder.split("/")[2:]))
