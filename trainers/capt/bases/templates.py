"""Hand-written prompts of CoOp's zero-shot CLIP, one per data set, and the seven chosen for ImageNet."""

__all__ = ["CUSTOM_TEMPLATES", "IMAGENET_TEMPLATES_SELECT", "template_of"]

CUSTOM_TEMPLATES: dict[str, str] = {
    "ImageNet": "a photo of a {}.",
    "Caltech101": "a photo of a {}.",
    "OxfordPets": "a photo of a {}, a type of pet.",
    "StanfordCars": "a photo of a {}.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "Food101": "a photo of {}, a type of food.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "SUN397": "a photo of a {}.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "UCF101": "a photo of a person doing {}.",
    "ImageNetV2": "a photo of a {}.",
    "ImageNetSketch": "a photo of a {}.",
    "ImageNetA": "a photo of a {}.",
    "ImageNetR": "a photo of a {}.",
    "FashionMNIST": "a photo of a {}, a type of clothing.",
    "Glyphs": "a photo of a {}.",
}

# From CLIP's notebook "Prompt Engineering for ImageNet"; the features of the seven are averaged.
IMAGENET_TEMPLATES_SELECT: list[str] = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
]


def template_of(dataset: str) -> str:
    """The hand-written prompt of a data set, or the one that fits any."""
    return CUSTOM_TEMPLATES.get(dataset, "a photo of a {}.")
