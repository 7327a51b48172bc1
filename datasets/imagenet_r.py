"""ImageNet-R (Hendrycks et al., 2021): renditions of 200 of ImageNet's classes."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    """30,000 test images; labels 0-199."""

    dataset_dir = "imagenet-rendition"
    image_folder = "imagenet-r"
