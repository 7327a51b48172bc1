"""CoOp's few-shot pickles ``split_fewshot/shot_{K}-seed_{SEED}.pkl``: exchanged with CoOp, but read safely.

A pickle is a program. The reader here admits the one class that these files need, Dassl's ``Datum``, and plain lists,
dicts, strings and integers; anything else is refused before it can run. Files written here are read by CoOp.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Mapping

from dassl.data.datasets import Datum

from .files import atomic_write
from .splits import Items

_DATUM = ("dassl.data.datasets.base_dataset", "Datum")


class _DatumUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) == _DATUM:
            return Datum
        raise pickle.UnpicklingError(f"it wants {module}.{name}, only Datum is admitted")


def read_pickle(path: str) -> dict[str, Items]:
    """Read a pickled ``{split: [Datum, ...]}`` that CoOp or this module wrote.

    Raises:
        pickle.UnpicklingError: the file is damaged or holds anything else; the message says what.
        OSError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = _DatumUnpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise pickle.UnpicklingError(f"{path} is not a few-shot file: {error}; remove it") from error
    if not isinstance(data, dict) or not all(isinstance(items, list) for items in data.values()):
        raise pickle.UnpicklingError(f"{path} is not a few-shot file: it holds no dict of lists; remove it")
    if not all(_is_sound(item) for items in data.values() for item in items):
        raise pickle.UnpicklingError(f"{path} is not a few-shot file: an entry is no Datum of an image; remove it")
    return data


def _is_sound(item: object) -> bool:
    if type(item) is not Datum:
        return False
    try:
        return isinstance(item.impath, str) and isinstance(item.label, int) and isinstance(item.classname, str)
    except AttributeError:
        return False


def write_pickle(path: str, splits: Mapping[str, Items]) -> bool:
    """Write ``{split: [Datum, ...]}``; False, with one printed line, where the folder cannot be written to."""
    try:
        atomic_write(path, pickle.dumps(dict(splits), protocol=pickle.HIGHEST_PROTOCOL))
    except OSError as error:
        print(f"Cannot write {path} ({error.strerror}); going on without this cache")
        return False
    return True


def match_sample(
    sample: Mapping[str, Items], sources: Mapping[str, Items], shots: Mapping[str, int], root: str
) -> dict[str, Items] | str:
    """Find a pickled sample's images among today's, or say in a few words why the sample is stale.

    Pickles hold absolute paths. They are compared from the data set's own folder (the last part of ``root``) on, so a
    sample stays valid when the data move.

    Args:
        sample: the pickled lists.
        sources: today's full lists.
        shots: number of images per class that each list should have (fewer where the class has fewer).
        root: the data set's folder.
    """
    matched: dict[str, Items] = {}
    for split, items in sources.items():
        if split not in sample:
            return f"it holds no {split} images"
        known = {_from_folder(item.impath, root): item for item in items}
        chosen = []
        for old in sample[split]:
            item = known.get(_from_folder(old.impath, root))
            if item is None:
                return f"{old.impath} is not among the {split} images under {root}"
            if (item.label, item.classname) != (old.label, old.classname):
                return f"{old.impath} has label {old.label} ({old.classname}), now {item.label} ({item.classname})"
            chosen.append(item)
        expected = {label: min(n, shots[split]) for label, n in Counter(item.label for item in items).items()}
        if Counter(item.label for item in chosen) != expected:
            return f"its {split} images are not {shots[split]} of each of the {len(expected)} classes"
        if len({item.impath for item in chosen}) != len(chosen):
            return f"a {split} image occurs twice"
        matched[split] = chosen
    return matched


def _from_folder(path: str, folder: str) -> str:
    marker = f"/{os.path.basename(folder)}/"
    return path.replace("\\", "/").rpartition(marker)[2]
