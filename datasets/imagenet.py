"""ImageNet (Deng et al., 2009), and what its four test-only variants share."""

import os
import pickle

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from yacs.config import CfgNode

from .data_folder import DataFolder
from .few_shot import FewShotDataset
from .files import DataNotFoundError
from .shot_cache import read_pickle, write_pickle
from .splits import Items, list_folders, list_images, make_datum


@DATASET_REGISTRY.register()
class ImageNet(FewShotDataset):
    """CoOp's ImageNet: 1,281,167 train images; the 50,000 validation images are both val and test.

    The lists are kept in ``preprocessed.pkl``, as CoOp keeps them. They are listed afresh where that file does not
    agree with the folders and class names of today.
    """

    dataset_dir = "imagenet"
    image_folder = "images"
    val_is_test = True

    @staticmethod
    def read_classnames(text_file: str) -> dict[str, str]:
        """Read lines ``n01440764 tench`` into ``{folder: class name}``, in the file's order."""
        with open(text_file, encoding="utf-8") as file:
            pairs = (line.strip().partition(" ") for line in file if line.strip())
            return {folder: name for folder, _, name in pairs}

    def list_splits(self) -> dict[str, Items]:
        """List the class folders, whatever ``preprocessed.pkl`` says."""
        folders = self._class_folders()
        names = self._names(folders)
        train, test = (
            list_class_folders(os.path.join(self.image_dir, part), folders, names, self.where())
            for part in ("train", "val")
        )
        return {"train": train, "val": test, "test": test}

    def load_splits(self) -> dict[str, Items]:
        """Read ``preprocessed.pkl``, or list the folders and write it; 1.3 million files are not looked at singly."""
        cache = self.path("preprocessed.pkl")
        lists = self._read_cache(cache)
        if lists is None:
            lists = self.list_splits()
            write_pickle(cache, {"train": lists["train"], "test": lists["test"]})
        return {"train": lists["train"], "val": lists["test"], "test": lists["test"]}

    def _names(self, folders: list[str]) -> dict[int, str]:
        classnames = self.read_classnames(self.need(self.path("classnames.txt")))
        return {label: _name(classnames, folder, self) for label, folder in enumerate(folders)}

    def _class_folders(self) -> list[str]:
        """Class folders of train, which val must have too: labels are places in the sorted list."""
        train_dir, val_dir = (self.need(os.path.join(self.image_dir, part)) for part in ("train", "val"))
        folders, val_folders = list_folders(train_dir), list_folders(val_dir)
        if not folders:
            raise DataNotFoundError(f"{train_dir} has no class folders (n01440764, ...); {self.where()}")
        if not val_folders:
            raise DataNotFoundError(
                f"{val_dir} has no class folders, so the test set is empty: move each validation image into "
                f"{val_dir}/<wnid>/, as docs/DATASETS.md, section ImageNet, shows"
            )
        if folders != val_folders:
            odd = sorted(set(folders) ^ set(val_folders))
            raise DataNotFoundError(
                f"{train_dir} and {val_dir} must have the same class folders, but {len(odd)} are in one only, "
                f"e.g. {', '.join(odd[:3])}; {self.where()}"
            )
        return folders

    def _read_cache(self, cache: str) -> dict[str, Items] | None:
        expected = self._names(self._class_folders())
        if not os.path.exists(cache):
            return None
        try:
            lists = read_pickle(cache)
        except pickle.UnpicklingError as error:
            print(f"Not using it, listing the folders again: {error}")
            return None
        inside = os.path.join(self.image_dir, "")
        for part in ("train", "test"):
            items = lists.get(part, [])
            if {item.label: item.classname for item in items} != expected:
                problem = f"its {part} classes are not those of the folders and classnames.txt"
            elif not all(item.impath.startswith(inside) for item in items):
                problem = f"its {part} images are not all under {inside}"
            elif not (os.path.isfile(items[0].impath) and os.path.isfile(items[-1].impath)):
                problem = f"{items[0].impath} or {items[-1].impath} is gone"
            else:
                continue
            print(f"Not using {cache}, listing the folders again: {problem}")
            return None
        return lists


class ImageNetVariant(DataFolder, DatasetBase):
    """A test set with classes of ImageNet: all images are ``train_x`` and ``test``, there is no val.

    ``NUM_SHOTS`` and ``SUBSAMPLE_CLASSES`` do not apply. Labels are places in the sorted list of class folders.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.locate(cfg.DATASET.ROOT)
        items = self.list_splits()["test"]
        super().__init__(train_x=items, test=items)

    def list_splits(self) -> dict[str, Items]:
        """List the images, as ``{"test": [...]}``."""
        classnames = ImageNet.read_classnames(self.need(self.path("classnames.txt")))
        folders = self.class_folders(classnames)
        names = {label: name for label, (_, name) in enumerate(folders)}
        return {"test": list_class_folders(self.image_dir, [folder for folder, _ in folders], names, self.where())}

    def class_folders(self, classnames: dict[str, str]) -> list[tuple[str, str]]:
        """Class folders with their class names, by label."""
        folders = list_folders(self.need(self.image_dir))
        if not folders:
            raise DataNotFoundError(f"{self.image_dir} has no class folders (n01440764, ...); {self.where()}")
        return [(folder, _name(classnames, folder, self)) for folder in folders]


def _name(classnames: dict[str, str], folder: str, dataset: DataFolder) -> str:
    if folder not in classnames:
        raise DataNotFoundError(
            f"{os.path.join(dataset.dataset_dir, 'classnames.txt')} has no line for the class folder {folder}; "
            f"{dataset.where()}"
        )
    return classnames[folder]


def list_class_folders(image_dir: str, folders: list[str], names: dict[int, str], where: str) -> Items:
    """List all images of the class folders.

    Raises:
        DataNotFoundError: a class folder is missing or empty.
    """
    items = []
    for label, folder in enumerate(folders):
        class_dir = os.path.join(image_dir, folder)
        images = list_images(class_dir) if os.path.isdir(class_dir) else []
        if not images:
            raise DataNotFoundError(f"no images in {class_dir}; {where}")
        items += [make_datum(path, label, names[label]) for path in images]
    return items
