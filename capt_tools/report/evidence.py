"""What CAPT used for an image: representatives and sentences, asked of the trained model itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import load_predictor
from .runs import RunData

if TYPE_CHECKING:
    from capt import ConfusionBank
    from capt.bank.prompt_library import PromptLibrary

__all__ = ["Evidence", "gather_evidence", "images_root", "root_of", "trained_folder"]


@dataclass(frozen=True)
class Evidence:
    """What a run's model says of its images and pairs; empty where no model could be asked.

    Attributes:
        note: why there is none, in words for the page; "" where there is.
        used: image path -> its representatives ``(path, label, rival, is error, cosine)``, nearest first.
        texts: ``"a,b"`` (labels) -> sentences ``difference_a``, ``difference_b``, ``commonality``; and ``sources``.
        filed: ``"a,b"`` -> the bank's training images of this pair, most torn first.
        names: what the bank's errors say of the class names, a line each.
    """

    note: str
    used: dict[str, list[tuple[str, str, str, bool, float]]]
    texts: dict[str, dict[str, list[str]]]
    filed: dict[str, list[tuple[str, str, str, bool]]]
    names: Sequence[str] = ()


def trained_folder(folder: Path) -> Path:
    """The run that trained what ``folder`` tested, by CoOp's folder names; ``folder`` itself where it trained."""
    parts = ["train_base" if part in ("test_new", "test_base") else part for part in folder.parts]
    return folder if (folder / "capt").is_dir() else Path(*parts)


def images_root(run: RunData, given: Path | None) -> Path:
    """Folder that image paths are relative to: what the user says, else the run's DATASET.ROOT, where it still lies."""
    return root_of(run.record, run.folder) if given is None else given


def root_of(record: dict[str, Any], folder: Path) -> Path:
    """DATASET.ROOT of a run by its record, from where the run was started: here, or above its ``folder``."""
    root = Path(record["config"]["DATASET"]["ROOT"]).expanduser()
    places = [root, *(above / root for above in folder.resolve().parents)]
    return next((place for place in places if place.is_dir()), root)


def gather_evidence(
    run: RunData, root: Path, chosen: Sequence[int], pairs: Sequence[tuple[int, int]], keep: int = 4, **load: Any
) -> Evidence:
    """Ask the model about test images and pairs of classes.

    Args:
        run: the run.
        root: folder that image paths are relative to.
        chosen: places of the test images to ask about.
        pairs: pairs of labels to fetch sentences and training images for.
        keep: representatives an image, and training images a pair times two.
        load: arguments of ``capt.load``.
    """
    if run.record["trainer"] != "CAPT":
        return Evidence(f"{run.record['trainer']} mines no pairs and keeps no bank.", {}, {}, {})
    from capt.use.explanation import explain

    try:
        predictor = load_predictor(trained_folder(run.folder), run.record["classnames"], **load)
    except (OSError, ValueError) as error:
        print(f"no representatives and texts: {error}", file=sys.stderr)
        return Evidence(f"The trained model could not be loaded: {error}", {}, {}, {})
    names = run.record["classnames"]
    places = [place for place in chosen if (root / run.paths[place]).is_file()]
    found = explain(predictor, [root / run.paths[place] for place in places], names, shown=run.is_shown)
    used = {
        run.paths[place]: [
            (s.path, s.label, s.rival, s.is_error, round(s.similarity, 3)) for s in item.representatives[:keep]
        ]
        for place, item in zip(places, found, strict=True)
    }
    texts = {f"{a},{b}": _texts(predictor.library, names[a], names[b]) for a, b in pairs}
    filed = _filed(predictor.bank, names, pairs, 2 * keep)
    return Evidence("", used, texts, filed, predictor.bank.notes if predictor.bank else ())


def _texts(library: PromptLibrary, a: str, b: str) -> dict[str, list[str]]:
    there, back = library.prompts(a, b), library.prompts(b, a)
    return {
        "difference_a": list(there.difference),
        "difference_b": list(back.difference),
        "commonality": list(there.commonality),
        "sources": list(there.sources),
    }


def _filed(
    bank: ConfusionBank | None, names: Sequence[str], pairs: Sequence[tuple[int, int]], keep: int
) -> dict[str, list[tuple[str, str, str, bool]]]:
    """The bank's entries of each pair, errors before near misses, each image once."""
    if bank is None or len(bank) == 0:
        return {}
    rows = zip(
        *(getattr(bank.entries, k)[:-1].tolist() for k in ("label", "rival", "pseudo_label", "index", "intensity")),
        strict=True,
    )
    by_pair: dict[tuple[int, int], list[tuple[bool, float, int, int, int]]] = {}
    for label, rival, pseudo, index, intensity in rows:
        is_error = label != pseudo
        entry = (not is_error, -intensity, index, label, rival)
        by_pair.setdefault((min(label, rival), max(label, rival)), []).append(entry)
    to_bank = bank.class_index(names).tolist()
    found = {}
    for a, b in pairs:
        known = to_bank[a], to_bank[b]
        entries, seen = sorted(by_pair.get((min(known), max(known)), [])), set()
        kept: list[tuple[str, str, str, bool]] = []
        for right, _, index, label, rival in entries:
            if index not in seen and len(kept) < keep:
                seen.add(index)
                kept.append((bank.paths[index], bank.classnames[label], bank.classnames[rival], not right))
        found[f"{a},{b}"] = kept
    return found
