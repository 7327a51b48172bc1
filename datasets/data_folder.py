"""Where a data set's files are, and the error for what is missing."""

from __future__ import annotations

import os

from .files import DataNotFoundError


class DataFolder:
    """A folder under the data root; comes before Dassl's ``DatasetBase`` in a data set's bases.

    Attributes:
        dataset_dir: folder under the root; absolute once :meth:`locate` was called.
        image_folder: folder of the images inside it, "" for itself.
        image_dir: its absolute path.
        split_file: CoOp's split file inside it, "" where official lists are read every time.
    """

    dataset_dir: str = ""
    image_folder: str = ""
    image_dir: str
    split_file: str = ""

    def locate(self, root: str) -> None:
        """Set the absolute paths under the data root.

        Raises:
            DataNotFoundError: the data set's folder is missing.
        """
        folder = type(self).dataset_dir
        root = os.path.abspath(os.path.expanduser(root))
        self.dataset_dir = os.path.join(root, folder)
        self.image_dir = self.path(self.image_folder) if self.image_folder else self.dataset_dir
        if not os.path.isdir(self.dataset_dir):
            hint = f"; --root must be the folder above {folder}/" if os.path.basename(root) == folder else ""
            raise DataNotFoundError(f"no folder {self.dataset_dir}{hint}; {self.where()}")

    def path(self, *parts: str) -> str:
        """Join names to the data set's folder."""
        return os.path.join(self.dataset_dir, *parts)

    def need(self, path: str) -> str:
        """Return ``path`` if it exists.

        Raises:
            DataNotFoundError: it does not.
        """
        if not os.path.exists(path):
            raise DataNotFoundError(f"no {path}; {self.where()}")
        return path

    def read_lines(self, *parts: str) -> list[str]:
        """Non-empty lines of a text file of the data set, stripped."""
        with open(self.need(self.path(*parts)), encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]

    @classmethod
    def where(cls) -> str:
        """The end of every error about missing files."""
        return f"docs/DATASETS.md, section {cls.__name__}, says where it comes from"
