"""What the data sets of CoOp share: finding the files, the split, the few shots, base and new classes.

A data-set file says only what differs: its folder, its split file, its class names. See ``caltech101.py`` for the
shortest and ``stanford_cars.py`` for one that reads annotation files.
"""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter
from collections.abc import Mapping

from dassl.data.datasets import DatasetBase
from yacs.config import CfgNode

from . import splits
from .data_folder import DataFolder
from .shot_cache import match_sample, read_pickle, write_pickle
from .splits import Items

# A split that has to be made is the same for every run: whatever SEED says, and whether or not it could be saved.
SPLIT_SEED = 1
# CoOp's number of validation images per class never exceeds this.
MAX_VAL_SHOTS = 4


class FewShotDataset(DataFolder, DatasetBase):
    """A data set in CoOp's layout: ``train_x`` (few-shot if asked), ``val``, ``test``, all or half of the classes.

    Reads ``DATASET.ROOT``, ``DATASET.NUM_SHOTS``, ``DATASET.SUBSAMPLE_CLASSES`` and ``SEED``. Shots are drawn with
    Dassl's ``generate_fewshot_dataset`` from the global ``random``, train first, then ``min(NUM_SHOTS, 4)`` of each
    class for val; the draw is kept in ``split_fewshot/``, with all classes, as CoOp keeps it.

    Attributes (besides those of :class:`.data_folder.DataFolder`):
        ignored_folders: folders that are no class, for sets read from folders.
        new_cnames: folder -> class name where they differ, for sets read from folders.
        val_is_test: whether the test images serve as validation images too (ImageNet).
    """

    ignored_folders: tuple[str, ...] = ()
    new_cnames: Mapping[str, str] = {}
    val_is_test: bool = False

    # CoOp's other code calls these on its classes, e.g. OxfordPets.subsample_classes(...).
    read_split = staticmethod(splits.read_split)
    save_split = staticmethod(splits.save_split)
    split_trainval = staticmethod(splits.split_trainval)
    read_and_split_data = staticmethod(splits.read_and_split_data)
    subsample_classes = staticmethod(splits.subsample_classes)

    def __init__(self, cfg: CfgNode) -> None:
        self.locate(cfg.DATASET.ROOT)
        parts = self.load_splits()
        if cfg.DATASET.NUM_SHOTS >= 1:
            parts.update(self.few_shot(parts, cfg.DATASET.NUM_SHOTS, cfg.SEED))
        if _is_distillation(cfg):
            train, test = parts["train"], parts["test"]
            val, test = (self.subsample_classes(train, test, subsample=half)[1] for half in ("base", "new"))
        elif self.val_is_test:
            train, test = self.subsample_classes(parts["train"], parts["test"], subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
            val = test
        else:
            train, val, test = self.subsample_classes(
                *(parts[part] for part in splits.SPLITS), subsample=cfg.DATASET.SUBSAMPLE_CLASSES
            )
        super().__init__(train_x=train, val=val, test=test)

    def locate(self, root: str) -> None:
        """Set the absolute paths under the data root.

        Raises:
            DataNotFoundError: the data set's folder is missing.
        """
        super().locate(root)
        self.split_path = self.path(self.split_file) if self.split_file else ""
        self.split_fewshot_dir = self.path("split_fewshot")

    # Splits

    def read_data(self) -> tuple[Items, Items, Items]:
        """Make ``train, val, test`` from the original files, for when there is no split file.

        This one splits folders 50/20/30; sets with annotation files override it.
        """
        return splits.read_and_split_data(
            self.need(self.image_dir),
            ignored=self.ignored_folders,
            new_cnames=self.new_cnames,
            rng=random.Random(SPLIT_SEED),
        )

    def list_splits(self) -> dict[str, Items]:
        """Read the split file, or the original files where it is missing; images are not looked at."""
        if self.split_path and os.path.exists(self.split_path):
            print(f"Reading split from {self.split_path}")
            lists = splits.load_split(self.split_path, self.image_dir)
        else:
            lists = self.read_data()
        return dict(zip(splits.SPLITS, lists, strict=True))

    def load_splits(self) -> dict[str, Items]:
        """Like :meth:`list_splits`, but check that every image exists and save a split that had to be made.

        Raises:
            DataNotFoundError: files are missing.
        """
        is_made = bool(self.split_path) and not os.path.exists(self.split_path)
        parts = self.list_splits()
        splits.check_images([item for items in parts.values() for item in items], self.image_dir, self.where())
        if is_made:
            self._save_made_split(parts)
        return parts

    def _save_made_split(self, parts: Mapping[str, Items]) -> None:
        print(
            f"No published split file {self.split_file}: a split was made from the files. Results on it are not "
            f"comparable with published ones; {self.where()}"
        )
        try:
            self.save_split(parts["train"], parts["val"], parts["test"], self.split_path, self.image_dir)
        except OSError as error:
            print(f"Cannot write {self.split_path} ({error.strerror}); the same split is made again next time")

    # Shots

    def few_shot(self, parts: Mapping[str, Items], num_shots: int, seed: int) -> dict[str, Items]:
        """Draw ``num_shots`` training and ``min(num_shots, 4)`` validation images per class, or read that draw.

        Args:
            parts: full lists; only those to be drawn from are read.
            num_shots: images per class; a smaller class is taken whole.
            seed: part of the cache's name only; the draw continues the global ``random``.
        """
        shots = {"train": num_shots} if self.val_is_test else {"train": num_shots, "val": min(num_shots, MAX_VAL_SHOTS)}
        sources = {part: parts[part] for part in shots}
        path = os.path.join(self.split_fewshot_dir, f"shot_{num_shots}-seed_{seed}.pkl")

        sample = self._cached_sample(path, sources, shots)
        if sample is None:
            sample = {
                part: self.generate_fewshot_dataset(items, num_shots=shots[part]) for part, items in sources.items()
            }
            print(f"Saving preprocessed few-shot data to {path}")
            write_pickle(path, sample)
        _count_small_classes(parts["train"], num_shots)
        return sample

    def _cached_sample(
        self, path: str, sources: Mapping[str, Items], shots: Mapping[str, int]
    ) -> dict[str, Items] | None:
        if not os.path.exists(path):
            return None
        print(f"Loading preprocessed few-shot data from {path}")
        try:
            sample = match_sample(read_pickle(path), sources, shots, self.dataset_dir)
        except pickle.UnpicklingError as error:
            sample = str(error)
        if isinstance(sample, str):
            print(f"Not using it, sampling again: {sample}")
            return None
        return sample


def _is_distillation(cfg: CfgNode) -> bool:
    """PromptKD learns from the images of all classes, without labels: val tests the base half, test the new one."""
    trainer = cfg.get("TRAINER", {})
    return bool(trainer.get("NAME") == "PromptKD" and trainer.MODAL == "base2novel")


def _count_small_classes(train: Items, num_shots: int) -> None:
    sizes = Counter(item.label for item in train)
    num_small = sum(size < num_shots for size in sizes.values())
    if num_small:
        print(f"{num_small} of {len(sizes)} classes have fewer than {num_shots} training images and are taken whole")


def describe_sample(dataset: DatasetBase, root: str) -> dict[str, dict[str, list[str]]]:
    """List a data set's training and validation images in readable form, to be stored beside a run's results.

    Meant for few-shot runs (it is as long as the lists are). Validation images that are the test images are left out.

    Args:
        dataset: any Dassl data set.
        root: the data root, ``cfg.DATASET.ROOT``.

    Returns:
        ``{"train": {class name: [paths relative to root, ...]}, "val": {...}}``, in the order drawn.
    """
    root = os.path.abspath(os.path.expanduser(root))
    parts = {"train": dataset.train_x}
    if dataset.val and dataset.val is not dataset.test:
        parts["val"] = dataset.val
    described: dict[str, dict[str, list[str]]] = {}
    for part, items in parts.items():
        by_class = described[part] = {}
        for item in items:
            by_class.setdefault(item.classname, []).append(os.path.relpath(item.impath, root).replace(os.sep, "/"))
    return described
