"""From runs to what the page shows: one plain structure per run, and the template around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..house import install
from .evidence import Evidence
from .figures import PairRow, cells, class_rows, pair_rows
from .order import order_classes
from .pictures import Album
from .runs import ReportError, RunData

__all__ = ["choose_images", "render", "run_content"]

TEMPLATE = Path(__file__).with_name("template.html.jinja")
Pictured = dict[str, list[list[Any]]]  # entries that end with the place of their thumbnail
MAX_PAIRS_TOLD = 400  # pairs whose sentences and training images the page holds
MAX_ERRORS = 6000  # wrong images that it lists
MAX_RIGHT = 6  # images of a class that are right before and after


def choose_images(run: RunData, pairs: Sequence[PairRow]) -> list[int]:
    """Places of the test images that the page lists: errors, those of the worst pairs first, then some right ones."""
    rank = {(row.a, row.b): place for place, row in enumerate(pairs)}
    base = run.predictions if run.base_predictions is None else run.base_predictions
    found = []
    for place, (y, b, p) in enumerate(zip(run.labels.tolist(), base.tolist(), run.predictions.tolist(), strict=True)):
        ranks = [rank[min(y, other), max(y, other)] for other in (b, p) if other != y]
        if ranks:
            found.append((min(ranks), place))
    errors = [place for _, place in sorted(found)][:MAX_ERRORS]
    right = np.flatnonzero((run.predictions == run.labels) & (base == run.labels))
    taken: dict[int, int] = {}
    for place in right[np.argsort(-run.probs.max(axis=1)[right], kind="stable")].tolist():
        label = int(run.labels[place])
        if taken.setdefault(label, 0) < MAX_RIGHT:
            taken[label] += 1
            errors.append(place)
    return errors


def run_content(
    run: RunData, name: str, root: Path, evidence: Evidence, chosen: Sequence[int], album: Album
) -> dict[str, Any]:
    """Everything that the page shows of a run, as plain lists and dicts; ``root`` is where image paths start."""
    c, base = run.num_classes, run.base_predictions
    pairs = pair_rows(run.labels, base, run.predictions, c)
    order = order_classes(run.labels, run.probs if run.base_probs is None else run.base_probs)
    record = run.record
    keys = (
        *("trainer", "base", "dataset", "split", "subsample", "shots", "seed", "backbone", "protocol", "selection"),
        *("epoch", "commit", "num_classes", "num_train", "num_test", "accuracy", "mean_per_class_accuracy", "macro_f1"),
        *("confusion", "transductive", "device"),
    )
    images = [_image(run, place, root, album) for place in chosen]
    used, filed = _with_pictures(evidence, [run.paths[place] for place in chosen], root, album)
    return {
        "name": name,
        "folder": str(run.folder),
        "record": {key: record.get(key) for key in keys},
        "classes": run.classnames,
        "order": order.classes,
        "blocks": order.blocks,
        "after": cells(run.labels, run.predictions, c),
        "before": None if base is None else cells(run.labels, base, c),
        "pairs": [[r.a, r.b, r.before, r.after, r.resolved, r.introduced] for r in pairs],
        "per_class": [
            [r.label, r.num_images, r.before, r.after, r.mistaken]
            for r in class_rows(run.labels, base, run.predictions, c)
        ],
        "images": images,
        "used": used,
        "filed": filed,
        "texts": evidence.texts,
        "note": evidence.note,
        "names": [f"{line[0].upper()}{line[1:]}." for line in evidence.names],
    }


def _image(run: RunData, place: int, root: Path, album: Album) -> list[Any]:
    """``[path, label, before, p, after, p, thumbnail]``; before and its p None where there is no base model."""
    after = int(run.probs[place].argmax())
    row = [run.paths[place], int(run.labels[place])]
    if run.base_probs is None:
        row += [None, None]
    else:
        before = int(run.base_probs[place].argmax())
        row += [before, round(float(run.base_probs[place, before]), 3)]
    return [*row, after, round(float(run.probs[place, after]), 3), album.add(root / run.paths[place])]


def _with_pictures(evidence: Evidence, paths: Sequence[str], root: Path, album: Album) -> tuple[Pictured, Pictured]:
    filed = {
        pair: [[*entry, album.add(root / entry[0])] for entry in entries] for pair, entries in evidence.filed.items()
    }
    used = {
        path: [[*entry, album.add(root / entry[0])] for entry in evidence.used[path]]
        for path in paths
        if evidence.used.get(path)
    }
    return used, filed


def render(contents: list[dict[str, Any]], album: Album, title: str) -> str:
    """The page.

    Raises:
        ReportError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ReportError(f"jinja2 is missing; {install('report')}") from error
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    data = {"runs": contents, "thumbnails": album.uris}
    # "<" would let a class name end the script element that the data stand in.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    missing = sorted(album.missing)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, data=text, missing=missing[:3], num_missing=len(missing), num_refused=len(album.refused)
    )
