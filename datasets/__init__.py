"""Data sets of the CoOp family. Importing this package registers all of them with Dassl."""

from importlib import import_module
from importlib.util import find_spec

MODULES = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "imagenetv2",
    "imagenet_sketch",
    "imagenet_a",
    "imagenet_r",
    "glyphs",
)

for _module in MODULES:
    if _module != "glyphs" or find_spec(f"{__name__}.glyphs"):
        import_module(f"{__name__}.{_module}")
