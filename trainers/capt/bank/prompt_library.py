"""Where the sentences about a pair of classes come from: what tells the two apart, and what they share.

Sources, the first that knows the pair wins:

1. ``<data set>_pairs.json``: ``{"a||b": {"commonality": [...], "difference_a": [...], "difference_b": [...]}}``;
2. class-wise files of the published code, ``<data set>_prompt_distinct.json`` and ``<data set>_prompt_common.json``:
   ``{class: [sentence, ...]}``; and FuDD's ``<data set>_prompt_pairs.json`` for the difference side;
3. templates made of the two names: always there, so nothing ever needs a network.

A file that a language model wrote (``make_prompts``) has the form of the first source.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

__all__ = ["PairEncoder", "PairPrompts", "PromptLibrary", "encode_pairs"]

SENTENCES_AT_A_TIME = 256
ADDED_AT_A_TIME = 65_536  # sentences of classes belong to many pairs; bounds the gathered copy

DIFFERENCE_TEMPLATES = ("a photo of a {t}, not a {j}.",)
COMMONALITY_TEMPLATES = ("a photo of a {t} or a {j}.",)


@dataclass(frozen=True)
class PairPrompts:
    """Sentences for the ordered pair (t, j).

    Attributes:
        difference: what tells t from j.
        commonality: why they are confused.
        sources: where the two sides come from, for the log.
    """

    difference: tuple[str, ...]
    commonality: tuple[str, ...]
    sources: tuple[str, str]


class PromptLibrary:
    """Looks up the sentences of pairs in the files of one folder, and falls back to templates.

    Args:
        folder: folder of the JSON files; it need not exist.
        dataset: the data set's name in file names, compared without regard to case.
        all_classnames: names of all classes of the data set in its own order, which FuDD's files count by.

    Raises:
        ValueError: a file is no JSON or of another form; the message names it.
    """

    def __init__(self, folder: str | Path, dataset: str, all_classnames: Sequence[str] = ()):
        self.files: list[Path] = []
        self._folder, self._dataset = Path(folder), dataset.lower()
        self._pairs = self._parsed("pairs", dict, lambda content: {_names(k): _sides(v) for k, v in content.items()})
        self._distinct = self._parsed("prompt_distinct", list, _by_class)
        self._common = self._parsed("prompt_common", list, _by_class)
        names = [_plain(name) for name in all_classnames]
        self._fudd = self._parsed("prompt_pairs", dict, lambda content: _fudd_differences(content, names))

    def _parsed(self, kind: str, value_type: type, parse: Callable[[dict[str, Any]], dict[Any, Any]]) -> dict[Any, Any]:
        """What ``parse`` makes of the file of this kind; {} without one."""
        content = self._read(kind, value_type)
        try:
            return parse(content)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f'"{self.files[-1]}" has another form than expected ({error}); mend or remove it'
            ) from error

    def _read(self, kind: str, value_type: type) -> dict[str, Any]:
        names = [p for p in self._folder.glob("*.json") if p.name.lower() == f"{self._dataset}_{kind}.json"]
        if not names:
            return {}
        path = names[0]
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f'"{path}" is no JSON ({error}); mend or remove it') from error
        if not isinstance(content, dict) or not all(isinstance(v, value_type) for v in content.values()):
            raise ValueError(f'"{path}" must map names to {value_type.__name__}s; see the README of descriptions/')
        self.files.append(path)
        return content

    def digest(self) -> str:
        """SHA-256 of all that sentences are made of: equal digests, equal sentences."""
        files = (self._pairs, self._distinct, self._common, self._fudd)
        parts: list[Any] = [DIFFERENCE_TEMPLATES, COMMONALITY_TEMPLATES]
        parts += [sorted((repr(key), value) for key, value in content.items()) for content in files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def prompts(self, t: str, j: str) -> PairPrompts:
        """Sentences for the ordered pair (t, j)."""
        t, j = _plain(t), _plain(j)
        entry, side = self._pairs.get((t, j)), "difference_a"
        if entry is None:
            entry, side = self._pairs.get((j, t), {}), "difference_b"
        difference, from_difference = _first(
            ("pairs file", entry.get(side, ())),
            ("class-wise file", self._distinct.get(t, ())),
            ("FuDD file", self._fudd.get((t, j), ())),
            ("template", tuple(s.format(t=t, j=j) for s in DIFFERENCE_TEMPLATES)),
        )
        first, second = sorted((t, j))
        classwise = self._common.get(first, ()) + self._common.get(second, ())
        commonality, from_commonality = _first(
            ("pairs file", entry.get("commonality", ())),
            ("class-wise file", classwise),
            ("template", tuple(s.format(t=first, j=second) for s in COMMONALITY_TEMPLATES)),
        )
        return PairPrompts(difference, commonality, (from_difference, from_commonality))


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _names(key: str) -> tuple[str, str]:
    a, separator, b = key.partition("||")
    if not separator:
        raise ValueError(f'the key "{key}" must be "a||b"')
    return _plain(a), _plain(b)


def _sides(entry: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {side: _sentences(entry.get(side, [])) for side in ("commonality", "difference_a", "difference_b")}


def _by_class(content: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {_plain(name): _sentences(value) for name, value in content.items()}


def _sentences(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{str(value)[:40]!r} is no list of sentences")
    return tuple(value)


def _first(*candidates: tuple[str, tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
    return next((sentences, source) for source, sentences in candidates if sentences)


def _fudd_differences(content: dict[str, Any], classnames: list[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for entry in content.values():
        a, b = (int(c) for c in entry["classes"])
        if max(a, b) >= len(classnames):
            raise ValueError(f"FuDD's file counts class {max(a, b)}, the data set has {len(classnames)} classes")
        texts = [pair["prompt_pair"] for pair in entry["prompt_pairs"]]
        found[classnames[a], classnames[b]] = tuple(text[0] for text in texts)
        found[classnames[b], classnames[a]] = tuple(text[1] for text in texts)
    return found


@dataclass(frozen=True)
class PairEncoder:
    """Makes features of the sentences about pairs; call it with the pairs that are wanted.

    Attributes:
        library: where the sentences come from.
        text_features: sentences to normalised features ``(S, D)`` by the frozen text encoder.
    """

    library: PromptLibrary
    text_features: Callable[[Sequence[str]], Tensor]

    def __call__(
        self, pairs: Sequence[tuple[str, str]], title: str | None = None
    ) -> tuple[Tensor, Tensor, Counter[str]]:
        """See :func:`encode_pairs`."""
        return encode_pairs(self.library, pairs, self.text_features, title)


@torch.no_grad()
def encode_pairs(
    library: PromptLibrary,
    pairs: Sequence[tuple[str, str]],
    text_features: Callable[[Sequence[str]], Tensor],
    title: str | None = None,
) -> tuple[Tensor, Tensor, Counter[str]]:
    """Prompt features of ordered pairs: encoded, averaged per pair and side, normalised.

    Every sentence is encoded once, however many of these pairs share it, and forgotten as soon as it is counted in.

    Args:
        library: where the sentences come from.
        pairs: n ordered pairs (t, j) of class names, n >= 1.
        text_features: sentences to normalised features ``(S, D)`` by the frozen text encoder.
        title: of a progress bar on a terminal; None for none.

    Returns:
        ``difference (n, D)``, D[t|j]; ``commonality (n, D)``, K[t, j]; and how many (pair, side)s came from each
        source.
    """
    sentences: dict[str, int] = {}
    sources: Counter[str] = Counter()
    cells: list[int] = []  # 2 i for the difference of pair i, 2 i + 1 for its commonality
    rows: list[int] = []  # which sentence it is made of
    for i, (t, j) in enumerate(pairs):
        prompts = library.prompts(t, j)
        for side, (name, texts) in enumerate(
            (("difference", prompts.difference), ("commonality", prompts.commonality))
        ):
            sources[f"{name}: {prompts.sources[side]}"] += 1
            cells += [2 * i + side] * len(texts)
            rows += [sentences.setdefault(text, len(sentences)) for text in texts]
    total = _sums(list(sentences), cells, rows, 2 * len(pairs), text_features, title)
    features = normalize(total, dim=-1)
    return features[0::2].contiguous(), features[1::2].contiguous(), sources


def _sums(
    sentences: list[str],
    cells: list[int],
    rows: list[int],
    num_cells: int,
    text_features: Callable[[Sequence[str]], Tensor],
    title: str | None,
) -> Tensor:
    """``(num_cells, D)``: the features of the sentences ``rows[i]`` added up in the cells ``cells[i]``."""
    row = torch.tensor(rows)
    order = row.argsort(stable=True)
    row, cell = row[order], torch.tensor(cells)[order]
    starts = range(0, len(sentences), SENTENCES_AT_A_TIME)
    total = None
    for start in tqdm(starts, desc=title, disable=title is None or not sys.stderr.isatty()):
        features = text_features(sentences[start : start + SENTENCES_AT_A_TIME])  # (n, D)
        if total is None:
            total = features.new_zeros(num_cells, features.shape[1])
        first, last = torch.searchsorted(row, torch.tensor([start, start + SENTENCES_AT_A_TIME])).tolist()
        for part in torch.arange(first, last).split(ADDED_AT_A_TIME):
            added = features[(row[part] - start).to(features.device)]
            total.index_add_(0, cell[part].to(features.device), added)
    assert total is not None, "no pair, no sentence"
    return total
