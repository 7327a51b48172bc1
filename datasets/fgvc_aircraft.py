"""FGVC-Aircraft (Maji et al., 2013): 100 aircraft variants, always by the official lists."""

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import FewShotDataset
from .splits import SPLITS, Items, make_datum


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    """CoOp's FGVCAircraft: 3,334 train, 3,333 val, 3,333 test images; the label is the line in ``variants.txt``."""

    dataset_dir = "fgvc_aircraft"
    image_folder = "images"

    def read_data(self) -> tuple[Items, Items, Items]:
        label_of = {name: label for label, name in enumerate(self.read_lines("variants.txt"))}
        train, val, test = (self._read_list(f"images_variant_{part}.txt", label_of) for part in SPLITS)
        return train, val, test

    def _read_list(self, name: str, label_of: dict[str, int]) -> Items:
        """Read lines ``0034309 Cessna 208``: image number, variant."""
        pairs = (line.split(" ", 1) for line in self.read_lines(name))
        return [make_datum(f"{self.image_dir}/{image}.jpg", label_of[variant], variant) for image, variant in pairs]
