"""ImageNetV2 (Recht et al., 2019), matched frequency: new photographs of ImageNet's 1000 classes."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """10,000 test images; class folders are numbers, that of the line in ``classnames.txt``."""

    dataset_dir = "imagenetv2"
    image_folder = "imagenetv2-matched-frequency-format-val"

    def class_folders(self, classnames: dict[str, str]) -> list[tuple[str, str]]:
        self.need(self.image_dir)
        return [(str(label), name) for label, name in enumerate(classnames.values())]
