"""Oxford-IIIT Pets (Parkhi et al., 2012): 37 breeds of cats and dogs."""

import random

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import SPLIT_SEED, FewShotDataset
from .splits import Items, make_datum


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """CoOp's OxfordPets: 2,944 train, 736 val (20 % of the official trainval list), 3,669 test images."""

    dataset_dir = "oxford_pets"
    image_folder = "images"
    split_file = "split_zhou_OxfordPets.json"

    def read_data(self) -> tuple[Items, Items, Items]:
        train, val = self.split_trainval(self._read_list("trainval.txt"), rng=random.Random(SPLIT_SEED))
        return train, val, self._read_list("test.txt")

    def _read_list(self, name: str) -> Items:
        """Read lines ``Abyssinian_100 1 1 1``: image, label from 1, species, number within the species."""
        items = []
        for line in self.read_lines("annotations", name):
            if line.startswith("#"):
                continue
            image, label, *_ = line.split()
            breed = image.rpartition("_")[0].lower()
            items.append(make_datum(f"{self.image_dir}/{image}.jpg", int(label) - 1, breed))
        return items
