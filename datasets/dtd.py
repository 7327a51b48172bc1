"""Describable Textures (Cimpoi et al., 2014): 47 textures."""

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import FewShotDataset


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    """CoOp's DTD: 2,820 train, 1,128 val, 1,692 test images. Not one of the ten official splits."""

    dataset_dir = "dtd"
    image_folder = "images"
    split_file = "split_zhou_DescribableTextures.json"
