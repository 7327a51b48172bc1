"""Fashion-MNIST (Xiao et al., 2017): 10 kinds of clothes, small grey photographs of a shop."""

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import FewShotDataset
from .files import DataNotFoundError
from .splits import Items


@DATASET_REGISTRY.register()
class FashionMNIST(FewShotDataset):
    """5,000 train, 1,000 val and the 10,000 official test images of 28 x 28 pixels; classes in the official order.

    The files and the split are made by ``scripts/prepare_fashion_mnist.py``, which leaves most of the 60,000 official
    training images out, to pre-train a CLIP on. The split is this project's own, not a published one.

    Attributes:
        CLASS_NAMES: class names by official label.
    """

    CLASS_NAMES = (
        "t-shirt",  # official: T-shirt/top
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )

    dataset_dir = "fashion_mnist"
    image_folder = "images"
    split_file = "split_fashion_mnist.json"

    def read_data(self) -> tuple[Items, Items, Items]:
        """Nothing to make a split from: the folders do not tell test images from training images."""
        raise DataNotFoundError(f"no {self.split_path}; run scripts/prepare_fashion_mnist.py; {self.where()}")
