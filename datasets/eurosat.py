"""EuroSAT (Helber et al., 2019): 10 kinds of land in satellite images."""

from dassl.data.datasets import DATASET_REGISTRY

from .few_shot import FewShotDataset


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    """CoOp's EuroSAT: 13,500 train, 5,400 val, 8,100 test images."""

    dataset_dir = "eurosat"
    image_folder = "2750"
    split_file = "split_zhou_EuroSAT.json"
    new_cnames = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }
