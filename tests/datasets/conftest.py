"""Fixtures of the data-set tests."""

import random

import compat  # noqa: F401  (makes dassl importable)

import pytest
import trees
from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

import datasets  # noqa: F401


@pytest.fixture
def load():
    """Build a data set by its registered name, from a freshly seeded ``random``, as train.py does."""

    def build(name, root, num_shots=-1, seed=1, subsample="all"):
        random.seed(seed)
        dataset = {"NAME": name, "ROOT": str(root), "NUM_SHOTS": num_shots, "SUBSAMPLE_CLASSES": subsample}
        return DATASET_REGISTRY.get(name)(CfgNode({"DATASET": dataset, "SEED": seed}))

    return build


@pytest.fixture
def caltech(tmp_path):
    """A root with a small Caltech101: five classes of 10 images, and the two folders that are no class."""
    trees.BUILDERS["Caltech101"](tmp_path)
    return tmp_path
