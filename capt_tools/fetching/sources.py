"""Which data sets torchvision's downloaders bring, and where what they unpack belongs in CoOp's folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SOURCES", "Source"]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        downloader: its class in ``torchvision.datasets``.
        folder: the data set's folder under the data root.
        places: path below torchvision's root -> path below ``folder``.
        is_verified: whether torchvision knows the archives' checksums; else an archive of a broken run is not trusted.
        num_images: images in the archive, by which it is checked where the lists of the splits do not come with it.
        by_hand: files besides the split file that come from elsewhere.
    """

    downloader: str
    folder: str
    places: Mapping[str, str]
    is_verified: bool = True
    num_images: int | None = None
    by_hand: tuple[str, ...] = ()


_LISTS = [f"images_variant_{part}.txt" for part in ("train", "val", "test")]
_AIRCRAFT = "fgvc-aircraft-2013b/data"
_CARS = ("cars_train", "cars_test", "devkit", "cars_test_annos_withlabels.mat")

SOURCES: dict[str, Source] = {
    "Caltech101": Source("Caltech101", "caltech-101", {"caltech101/101_ObjectCategories": "101_ObjectCategories"}),
    "OxfordPets": Source(
        "OxfordIIITPet", "oxford_pets", {f"oxford-iiit-pet/{name}": name for name in ("images", "annotations")}
    ),
    "OxfordFlowers": Source(
        "Flowers102",
        "oxford_flowers",
        {f"flowers-102/{name}": name for name in ("jpg", "imagelabels.mat")},
        num_images=8_189,
        by_hand=("cat_to_name.json",),
    ),
    "Food101": Source("Food101", "food-101", {"food-101/images": "images"}),
    "DescribableTextures": Source("DTD", "dtd", {"dtd/dtd/images": "images"}),
    "EuroSAT": Source("EuroSAT", "eurosat", {"eurosat/2750": "2750"}),
    "FGVCAircraft": Source(
        "FGVCAircraft",
        "fgvc_aircraft",
        {f"{_AIRCRAFT}/{name}": name for name in ("images", "variants.txt", *_LISTS)},
        is_verified=False,
    ),
    "SUN397": Source("SUN397", "sun397", {"SUN397": "SUN397"}, num_images=108_754),
    "StanfordCars": Source("StanfordCars", "stanford_cars", {f"stanford_cars/{name}": name for name in _CARS}),
}
