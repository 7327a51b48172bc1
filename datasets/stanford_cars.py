"""Stanford Cars (Krause et al., 2013): 196 makes, models and years."""

import random

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import SPLIT_SEED, FewShotDataset
from .files import read_matlab
from .splits import Items, make_datum


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """CoOp's StanfordCars: 6,509 train, 1,635 val (20 % of the official train list), 8,041 test images.

    Its split file holds paths from the data set's folder on (``cars_train/00001.jpg``).
    """

    dataset_dir = "stanford_cars"
    split_file = "split_zhou_StanfordCars.json"

    def read_data(self) -> tuple[Items, Items, Items]:
        trainval = self._read_annotations("cars_train", self.path("devkit", "cars_train_annos.mat"))
        train, val = self.split_trainval(trainval, rng=random.Random(SPLIT_SEED))
        return train, val, self._read_annotations("cars_test", self.path("cars_test_annos_withlabels.mat"))

    def _read_annotations(self, folder: str, annotation_file: str) -> Items:
        names = [
            _year_first(str(name[0]))
            for name in read_matlab(self.need(self.path("devkit", "cars_meta.mat")))["class_names"][0]
        ]
        items = []
        for annotation in read_matlab(self.need(annotation_file))["annotations"][0]:
            label = int(annotation["class"][0, 0]) - 1
            items.append(make_datum(self.path(folder, str(annotation["fname"][0])), label, names[label]))
        return items


def _year_first(name: str) -> str:
    """``Audi TTS Coupe 2012`` -> ``2012 Audi TTS Coupe``."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}"
