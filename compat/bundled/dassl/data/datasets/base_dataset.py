"""One image's record and the base class of data sets.

Few-shot pickles hold ``dassl.data.datasets.base_dataset.Datum`` with the attributes ``_impath, _label, _domain,
_classname``; the module path and these names are part of that file format.
"""

import os
import os.path as osp
import random
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ...utils import check_isfile

__all__ = ["DatasetBase", "Datum"]


class Datum:
    """One image: file, label, domain, class name.

    Args:
        impath: Image file; it must exist.
        label: Class label.
        domain: Domain label.
        classname: Class name.

    Raises:
        AssertionError: The file does not exist (a warning names it).
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        assert isinstance(impath, str)
        assert check_isfile(impath)
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        """Image file."""
        return self._impath

    @property
    def label(self) -> int:
        """Class label."""
        return self._label

    @property
    def domain(self) -> int:
        """Domain label."""
        return self._domain

    @property
    def classname(self) -> str:
        """Class name."""
        return self._classname


class DatasetBase:
    """Splits of a data set. Labels and class names are those of ``train_x``.

    Args:
        train_x: Labelled training data, list of ``Datum``.
        train_u: Unlabelled training data.
        val: Validation data.
        test: Test data.
    """

    dataset_dir: str = ""  # folder of the data set under DATASET.ROOT
    domains: Sequence[str] = []

    def __init__(
        self,
        train_x: list[Datum] = None,  # type: ignore[assignment]  # Dassl's default; every data set has some
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] = None,  # type: ignore[assignment]  # as train_x
    ) -> None:
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> list[Datum]:
        """Labelled training data."""
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        """Unlabelled training data, or None."""
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        """Validation data, or None."""
        return self._val

    @property
    def test(self) -> list[Datum]:
        """Test data."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Label -> class name."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of their labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Largest label plus one."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Iterable[Datum]) -> int:
        """Return the largest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Iterable[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return ``({label: class name}, [class names in the order of the labels])``."""
        by_label = {item.label: item.classname for item in data_source}
        mapping = {label: by_label[label] for label in sorted(by_label)}
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Check the domains of a run: some of each, all known."""
        assert source_domains, "DATASET.SOURCE_DOMAINS names no domain"
        assert target_domains, "DATASET.TARGET_DOMAINS names no domain"
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Raise a ValueError for a domain the data set does not have."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"unknown domain {domain!r}; the data set has {self.domains}")

    def download_data(self, url: str, dst: str, from_gdrive: bool = True) -> None:
        """Download an archive from Google Drive and unpack it beside itself.

        Args:
            url: Address.
            dst: Archive file to write (.zip, .tar or .tar.gz).
            from_gdrive: Other sources are not supported.
        """
        if not from_gdrive:
            raise NotImplementedError("only downloads from Google Drive are supported; download the file by hand")
        try:
            import gdown
        except ImportError:
            raise ImportError("downloading from Google Drive needs gdown: pip install gdown") from None
        folder = osp.dirname(dst)
        os.makedirs(folder, exist_ok=True)
        gdown.download(url, dst, quiet=False)
        print(f"Unpacking {dst}")
        if dst.endswith(".zip"):
            with zipfile.ZipFile(dst) as archive:
                archive.extractall(folder)
        else:
            with tarfile.open(dst) as archive:
                # Refuses members that would be written outside the folder.
                archive.extractall(folder, filter="data")

    def generate_fewshot_dataset(self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False) -> Any:
        """Draw ``num_shots`` items per class from each source.

        The draws come from the global ``random`` in a fixed sequence: sources in order, labels in order of first
        appearance, one ``random.sample`` per label; a label with too few items costs no draw.

        Args:
            *data_sources: Lists of ``Datum``.
            num_shots: Below 1 the sources are returned as they are.
            repeat: Top up small classes by drawing with replacement; otherwise all their items are taken.

        Returns:
            A list for one source, a list of lists for several (the tuple of sources when ``num_shots`` is below 1).
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = [self._draw_shots(source, num_shots, repeat) for source in data_sources]
        return output[0] if len(output) == 1 else output

    def _draw_shots(self, data_source: list[Datum], num_shots: int, repeat: bool) -> list[Datum]:
        drawn: list[Datum] = []
        for items in self.split_dataset_by_label(data_source).values():
            if len(items) >= num_shots:
                items = random.sample(items, num_shots)
            elif repeat:
                items = random.choices(items, k=num_shots)
            drawn.extend(items)
        return drawn

    def split_dataset_by_label(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Return label -> items, labels in order of first appearance, items in their order."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Iterable[Datum]) -> dict[int, list[Datum]]:
        """Return domain -> items, domains in order of first appearance, items in their order."""
        groups: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups
