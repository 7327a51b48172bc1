"""Food-101 (Bossard et al., 2014): 101 dishes."""

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import FewShotDataset


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """CoOp's Food101: 50,500 train, 20,200 val, 30,300 test images. Not the official split."""

    dataset_dir = "food-101"
    image_folder = "images"
    split_file = "split_zhou_Food101.json"
