"""ImageNet-A (Hendrycks et al., 2021): natural adversarial photographs of 200 of ImageNet's classes."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    """7,500 test images; labels 0-199."""

    dataset_dir = "imagenet-adversarial"
    image_folder = "imagenet-a"
