"""Oxford Flowers 102 (Nilsback and Zisserman, 2008): 102 kinds of flowers."""

import json
import random
from collections import defaultdict

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import SPLIT_SEED, FewShotDataset
from .files import read_matlab
from .splits import Items, make_datum, split_in_three


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """CoOp's OxfordFlowers: 4,093 train, 1,633 val, 2,463 test images. Not the official split."""

    dataset_dir = "oxford_flowers"
    image_folder = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"

    def read_data(self) -> tuple[Items, Items, Items]:
        """Split each label 50/20/30, in the order in which the labels appear in ``imagelabels.mat``."""
        with open(self.need(self.path("cat_to_name.json")), encoding="utf-8") as file:
            names = json.load(file)
        by_label: dict[int, Items] = defaultdict(list)
        for number, label in enumerate(read_matlab(self.need(self.path("imagelabels.mat")))["labels"][0], start=1):
            image = f"{self.image_dir}/image_{number:05d}.jpg"
            by_label[int(label)].append(make_datum(image, int(label) - 1, names[str(label)]))

        print("Splitting data into 50% train, 20% val, and 30% test")
        rng = random.Random(SPLIT_SEED)
        train: Items = []
        val: Items = []
        test: Items = []
        for items in by_label.values():
            for part, chosen in zip((train, val, test), split_in_three(items, rng=rng), strict=True):
                part += chosen
        return train, val, test
