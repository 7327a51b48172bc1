"""Caltech101 (Fei-Fei et al., 2004): 100 object classes, without the background and the near-double of faces."""

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import FewShotDataset


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """CoOp's Caltech101: 4,128 train, 1,649 val, 2,465 test images."""

    dataset_dir = "caltech-101"
    image_folder = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    ignored_folders = ("BACKGROUND_Google", "Faces_easy")
    new_cnames = {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }
