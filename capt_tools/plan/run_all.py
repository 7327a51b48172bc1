"""What one method does on one data set with one seed, and which of all three the papers' tables ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from .methods import method_in
from .protocols import plan
from .settings import Settings
from .steps import Plan

__all__ = ["DATASETS", "METHODS", "PROTOCOLS", "Stage", "stages"]

PROTOCOLS = ("base2new", "xd", "few_shot")
METHODS = "zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp"
# The eleven of the papers, less ImageNet.
DATASETS = "caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"


class Stage(NamedTuple):
    """One script's part of what a method does on one data set with one seed."""

    protocol: str
    script: str  # as it is called by hand, below scripts/
    plan: Plan


def stages(settings: Settings, protocol: str, name: str, dataset: str, seed: str) -> Iterator[Stage]:
    """Everything that one method does on one data set with one seed.

    Args:
        settings: all but the base and the seeds.
        protocol: one of PROTOCOLS.
        name: folder of the method's scripts; ``capt:NAME`` is CAPT on the base learner NAME.
        dataset: name of configs/datasets/*.yaml.
        seed: of the runs.
    """
    folder, _, base = name.partition(":")
    settings = replace(settings, base=base or "ZeroshotCLIP", seeds=(seed,))

    def stage(protocol: str, *arguments: str) -> Stage:
        script = " ".join([f"{folder}/{protocol}.sh", *arguments])
        return Stage(protocol, script, plan(settings, method_in(folder), protocol, *arguments))

    if folder == "zsclip" and protocol != "base2new":
        yield stage("zeroshot", dataset, settings.cfg or "vit_b16")
    elif protocol == "base2new":
        yield stage("base2new_train", dataset, seed)
        yield stage("base2new_test", dataset, seed)
    elif protocol == "xd":
        yield stage("xd_train", settings.source, seed)
        yield stage("xd_test", dataset, seed)
    else:
        yield stage("few_shot", dataset, settings.shots)
