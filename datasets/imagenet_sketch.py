"""ImageNet-Sketch (Wang et al., 2019): sketches of ImageNet's 1000 classes."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """50,889 test images."""

    dataset_dir = "imagenet-sketch"
    image_folder = "images"
