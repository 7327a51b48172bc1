"""Data sets of the CoOp family. Importing this package registers all of them with Dassl."""

from . import (  # noqa: F401
    caltech101,
    dtd,
    eurosat,
    fashion_mnist,
    fgvc_aircraft,
    folder,
    food101,
    glyphs,
    imagenet,
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenetv2,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    ucf101,
)
