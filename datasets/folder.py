"""Your own images: any folder with one folder per class, or with train, val and test folders of that kind."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict

from dassl.data.datasets import DATASET_REGISTRY

from trainers.capt.bases.templates import CUSTOM_TEMPLATES

from . import splits
from .few_shot import SPLIT_SEED, FewShotDataset
from .files import DataNotFoundError, atomic_write
from .folder_files import find_damaged, list_tree, read_classnames, read_template
from .splits import Items, make_datum

_VAL_FOLDERS = ("val", "valid", "validation")


@DATASET_REGISTRY.register()
class Folder(FewShotDataset):
    """``DATASET.NAME Folder`` and ``DATASET.ROOT <folder>``; nothing else is needed.

    The folder holds class folders, which are split 50/20/30 by a fixed seed, or ``train`` with ``test`` and/or ``val``
    (``valid``, ``validation``) that hold class folders each. Without a ``test`` folder the val images are the test
    images. Images may lie deeper inside a class folder. Optional files beside the folders: ``classnames.json``,
    ``{"folder": "class name"}``, and ``template.txt``, one line with ``{}`` for the class name.

    On first use every image is read once. What cannot be read is named and left out; the split is kept in
    ``.capt/split.json`` inside the folder, so that every later run sees the same images.

    Images are read as a viewer shows them, see :mod:`trainers.capt.run.pictures`.
    """

    pictures = "shown"

    def locate(self, root: str) -> None:
        """Set the paths.

        Raises:
            DataNotFoundError: there is no such folder.
        """
        self.dataset_dir = self.image_dir = os.path.abspath(os.path.expanduser(root))
        if not os.path.isdir(self.dataset_dir):
            raise DataNotFoundError(f"no folder {self.dataset_dir}; DATASET.ROOT must name the folder of your images")
        self.split_path = self.path(".capt", "split.json")
        self.split_fewshot_dir = self.path(".capt", "split_fewshot")
        self.trees = self._find_trees()
        self.val_is_test = "val" in self.trees and "test" not in self.trees

    @classmethod
    def where(cls) -> str:
        """The end of every error about missing files."""
        return "put them back, or delete .capt/ in that folder for a new split (runs on the old one no longer compare)"

    def _find_trees(self) -> dict[str, str]:
        """Folder of each part where the parts have folders of their own, else {}."""
        folders = set(splits.list_folders(self.dataset_dir))
        val = next((name for name in _VAL_FOLDERS if name in folders), None)
        found = {"train": "train", "val": val, "test": "test" if "test" in folders else None}
        trees = {part: name for part, name in found.items() if name is not None}
        is_parted = "train" in folders and len(trees) > 1 and bool(splits.list_folders(self.path("train")))
        return trees if is_parted else {}

    def load_splits(self) -> dict[str, Items]:
        """The kept split, or a new one that is kept from now on.

        Raises:
            DataNotFoundError: images of the kept split have gone.
            ValueError: too few classes or images; a class without training images; labels with a gap.
        """
        images, num_others = self._list_images()
        if os.path.exists(self.split_path):
            parts = self._kept_split(images)
        else:
            if num_others:
                print(f"{num_others:,} files are no images and are left out")
            parts = self._new_split(images)
        folders = sorted({self._class_folder(item.impath) for items in parts.values() for item in items})
        names = read_classnames(self.path("classnames.json"), folders)
        for items in parts.values():
            items[:] = [make_datum(i.impath, i.label, names[self._class_folder(i.impath)]) for i in items]
        _warn_of_equal_names(names)
        self._check(parts)
        self._take_template()
        return parts

    def _list_images(self) -> tuple[dict[str, dict[str, list[str]]], int]:
        """Images by part ("" where there are no parts) and class folder, and the number of other files."""
        listed, num_others = {}, 0
        for part, folder in (self.trees or {"": ""}).items():
            listed[part], others = list_tree(self.path(folder) if folder else self.dataset_dir)
            num_others += others
        return listed, num_others

    def _class_folder(self, path: str) -> str:
        return os.path.relpath(path, self.dataset_dir).split(os.sep)[1 if self.trees else 0]

    # The first time

    def _new_split(self, images: dict[str, dict[str, list[str]]]) -> dict[str, Items]:
        everything = [path for tree in images.values() for paths in tree.values() for path in paths]
        damaged = find_damaged(everything)
        for path, reason in damaged.items():
            print(f"Left out, cannot be read: {os.path.relpath(path, self.dataset_dir)} ({reason})")
        sound = {
            part: {name: [path for path in paths if path not in damaged] for name, paths in tree.items()}
            for part, tree in images.items()
        }
        classes = sorted({name for tree in sound.values() for name, paths in tree.items() if paths})
        empty = sorted({name for tree in images.values() for name in tree} - set(classes))
        if empty:
            print(f"Left out, no readable image: {', '.join(empty)}")
        label_of = {name: label for label, name in enumerate(classes)}
        parts = self._parted(sound, label_of) if self.trees else self._drawn(sound[""], label_of)
        self._check(parts)
        self._keep(parts, damaged)
        return parts

    def _parted(self, sound: dict[str, dict[str, list[str]]], label_of: dict[str, int]) -> dict[str, Items]:
        """The parts as the user's folders have them."""
        parts = {
            part: [make_datum(path, label_of[name], name) for name, paths in tree.items() for path in paths]
            for part, tree in sound.items()
        }
        if self.val_is_test:
            print(f"No test folder: the {len(parts['val']):,} images of {self.trees['val']}/ are the test images")
            parts["test"] = list(parts["val"])
        return {part: parts.get(part, []) for part in splits.SPLITS}

    def _drawn(self, sound: dict[str, list[str]], label_of: dict[str, int]) -> dict[str, Items]:
        """50/20/30 of each class by a fixed seed; a small class keeps an image for training, then one for testing."""
        rng = random.Random(SPLIT_SEED)
        parts: dict[str, Items] = {part: [] for part in splits.SPLITS}
        for name, label in label_of.items():
            items = [make_datum(path, label, name) for path in sound[name]]
            rng.shuffle(items)
            num_test = min(max(1, round(0.3 * len(items))), len(items) - 1)
            num_val = min(round(0.2 * len(items)), len(items) - 1 - num_test)
            parts["test"] += items[:num_test]
            parts["val"] += items[num_test : num_test + max(0, num_val)]
            parts["train"] += items[num_test + max(0, num_val) :]
        return parts

    def _keep(self, parts: dict[str, Items], damaged: dict[str, str]) -> None:
        sizes = ", ".join(f"{len(parts[part]):,} {part}" for part in splits.SPLITS)
        how = "as your folders have it" if self.trees else f"50/20/30 of each class, seed {SPLIT_SEED}"
        listed = {
            part: [
                [os.path.relpath(i.impath, self.dataset_dir).replace(os.sep, "/"), i.label, i.classname] for i in items
            ]
            for part, items in parts.items()
        }
        left_out = {os.path.relpath(path, self.dataset_dir): reason for path, reason in damaged.items()}
        try:
            atomic_write(self.split_path, json.dumps({**listed, "left_out": left_out}, indent=1).encode())
            print(f"Split {how}: {sizes} images; kept in {self.split_path}")
        except OSError as error:
            print(
                f"Split {how}: {sizes} images; cannot write {self.split_path} ({error.strerror}), made anew each time"
            )

    # Every other time

    def _kept_split(self, images: dict[str, dict[str, list[str]]]) -> dict[str, Items]:
        print(f"Reading split from {self.split_path}")
        parts = dict(zip(splits.SPLITS, splits.load_split(self.split_path, self.dataset_dir), strict=True))
        with open(self.split_path, encoding="utf-8") as file:
            left_out = json.load(file).get("left_out", {})
        listed = [item for items in parts.values() for item in items]
        splits.check_images(listed, self.dataset_dir, self.where())
        known = {item.impath for item in listed} | {self.path(path) for path in left_out}
        new = [path for tree in images.values() for paths in tree.values() for path in paths if path not in known]
        if left_out:
            print(f"{len(left_out):,} images that cannot be read are left out, e.g. {next(iter(left_out))}")
        if new:
            example = os.path.relpath(new[0], self.dataset_dir)
            print(f"{len(new):,} images came after the split and are left out, e.g. {example}; {self.where()}")
        return parts

    # Both

    def _check(self, parts: dict[str, Items]) -> None:
        """Refuse what no run could use."""
        first: dict[str, dict[int, str]] = {part: {} for part in parts}
        for part, items in parts.items():
            for item in items:
                first[part].setdefault(item.label, os.path.relpath(item.impath, self.dataset_dir))
        labels = {label: path for part in first.values() for label, path in part.items()}
        if len(labels) < 2:
            raise ValueError(
                f"{self.dataset_dir} must hold at least 2 folders with images, one per class, got {len(labels)}"
            )
        gap = sorted(set(range(max(labels) + 1)) - labels.keys())
        if gap:
            raise ValueError(
                f"labels must be 0 to C-1, {self.split_path} skips {gap[0]} but has {max(labels)} "
                f"({labels[max(labels)]}); delete it for a new split"
            )
        for label, path in labels.items():
            if label not in first["train"]:
                raise ValueError(f"the class of {path} has no training image; add some to train/ or remove the class")
        if not parts["test"]:
            raise ValueError(f"{self.dataset_dir} leaves no test images; a class needs two images or more")
        untested = [path for label, path in first["train"].items() if label not in first["test"]]
        if untested:
            print(f"{len(untested)} of {len(labels)} classes have no test image, e.g. that of {untested[0]}")

    def _take_template(self) -> None:
        """Make ``template.txt`` the template of this data set, for every trainer of this process."""
        template = read_template(self.path("template.txt"))
        if template is None:
            CUSTOM_TEMPLATES.pop(type(self).__name__, None)
        else:
            CUSTOM_TEMPLATES[type(self).__name__] = template
            print(f"Prompt template: {template}")


def _warn_of_equal_names(names: dict[str, str]) -> None:
    folders = defaultdict(list)
    for folder, name in names.items():
        folders[name.replace("_", " ")].append(folder)
    for name, found in folders.items():
        if len(found) > 1:
            print(f"Warning: {', '.join(found)} are all called {name!r}; no prompt can tell them apart")
