"""What a batch's retrieval costs: the entries of the mined classes alone, against a comparison with the whole bank.

Random class tokens of ViT-B/16's width, labels at random among the classes, queries with a target and five partners
each. The ways are timed in turns, so that what else runs on the machine meets all; their answers are compared too.
Where faiss is installed (``pip install faiss-cpu``; no extra of this package) its exact index is asked as well: with
the entries that count named for every query, which gives the same answers, and for the nearest of all, which does not.

    python benchmarks/bank.py --output bank.json
    python benchmarks/bank.py --entries 1000 100000 --classes 1000
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import normalize

from trainers.capt.bank.confusion_bank import ConfusionBank
from trainers.capt.bank.retrieval import Retrieved
from trainers.capt.run.files import write_json
from trainers.capt.run.record import code_commit

NUM_PARTNERS, NUM_REPRESENTATIVES = 5, 8
Query = tuple[Tensor, Tensor, Tensor, Tensor]  # class tokens (B, Dv), target (B,), partners (B, P), own image (B,)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    parser.add_argument("--entries", type=int, nargs="+", default=sizes, help="sizes of the bank (1,000 to 1,000,000)")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=100, help="in a batch")
    parser.add_argument("--width", type=int, default=768, help="of a class token")
    parser.add_argument("--repeats", type=int, default=9, help="of all ways, in turns; the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="JSON file for the figures")
    return parser.parse_args(argv)


def random_bank(num_entries: int, num_classes: int, width: int, device: str, seed: int = 0) -> ConfusionBank:
    """A bank of random entries."""
    source = torch.Generator().manual_seed(seed)
    label = torch.randint(num_classes, (num_entries,), generator=source)
    rival = (label + torch.randint(1, num_classes, (num_entries,), generator=source)) % num_classes
    nothing, number = torch.zeros(num_entries), torch.arange(num_entries)
    rows = {
        **{"label": label, "pseudo_label": rival, "rival": rival, "index": number, "view": torch.zeros_like(number)},
        **dict.fromkeys(("p_label", "p_pseudo", "intensity"), nothing),
        "feature": torch.zeros(num_entries, 1),
        "cls": torch.randn(num_entries, width, generator=source),
        "counts": torch.zeros(num_classes, num_classes),
    }
    rows = {name: value.to(device) for name, value in rows.items()}
    paths = [str(image) for image in range(num_entries)]
    return ConfusionBank.from_state_dict(rows, [f"class {c}" for c in range(num_classes)], paths)


def random_query(num_queries: int, num_classes: int, width: int, device: str, seed: int = 1) -> Query:
    """A batch of queries, none of an image in the bank."""
    source = torch.Generator().manual_seed(seed)
    mined = torch.rand(num_queries, num_classes, generator=source).topk(1 + NUM_PARTNERS, dim=1).indices
    cls = torch.randn(num_queries, width, generator=source)
    none = torch.full((num_queries,), -1)
    return cls.to(device), mined[:, 0].to(device), mined[:, 1:].to(device), none.to(device)


def by_classes(bank: ConfusionBank, query: Query) -> Retrieved:
    """As it is done."""
    return bank.retrieve(*query, NUM_REPRESENTATIVES, by_label=True)


def by_mask(bank: ConfusionBank, query: Query) -> Retrieved:
    """As it was done: every query with every entry, and a mask over both."""
    cls, target, partners, own = query
    label, index = (value[:-1][bank.filed.entry] for value in (bank.entries.label, bank.entries.index))
    mined = torch.cat([target.unsqueeze(1), partners], dim=1)
    member = torch.zeros(len(cls), bank.num_classes, dtype=torch.bool, device=cls.device).scatter(1, mined, True)
    is_own = (own.unsqueeze(1) == index) & (own.unsqueeze(1) >= 0)
    similarity = bank.likeness.keys(cls) @ bank.filed.keys.t()
    top, place = similarity.masked_fill(~member[:, label] | is_own, -torch.inf).topk(NUM_REPRESENTATIVES, dim=1)
    valid = top > -torch.inf
    entry = bank.filed.entry[place].masked_fill(~valid, len(bank))
    return Retrieved(entry, valid, top.masked_fill(~valid, 0.0))


def by_faiss(bank: ConfusionBank, query: Query, index: Any) -> Retrieved:
    """By faiss's exact index of the whole bank, which is told for every query which entries count."""
    import faiss

    cls, target, partners, _ = query
    label = bank.entries.label[:-1][bank.filed.entry].numpy()
    mined = torch.cat([target.unsqueeze(1), partners], dim=1).numpy()
    keys, found = bank.likeness.keys(cls).numpy(), []
    for number, classes in enumerate(mined):
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.flatnonzero(np.isin(label, classes))))
        found.append(index.search(keys[number : number + 1], NUM_REPRESENTATIVES, params=chosen))
    top, place = (torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True))
    valid = place >= 0
    entry = bank.filed.entry[place.clamp_min(0)].masked_fill(~valid, len(bank))
    return Retrieved(entry, valid, top.masked_fill(~valid, 0.0))


def index_of(bank: ConfusionBank) -> Any:
    """faiss's exact index of inner products of the bank's keys."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(bank.filed.keys.shape[1])
    index.add(bank.filed.keys.numpy())
    return index


def nearest_of_all(bank: ConfusionBank, query: Query, index: Any) -> object:
    """By the same index without a word of classes: another question, and what faiss is made for."""
    return index.search(bank.likeness.keys(query[0]).numpy(), NUM_REPRESENTATIVES)


def agree(one: Retrieved, other: Retrieved) -> bool:
    """Whether both found the same entries, as likely as rounding lets them be told apart."""
    is_close = torch.allclose(one.similarity, other.similarity, atol=1e-5)
    is_same = (one.entry == other.entry) | ((one.similarity - other.similarity).abs() < 1e-5)
    return is_close and bool(is_same.all()) and torch.equal(one.valid, other.valid)


def medians(ways: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Milliseconds of each, timed in turns after one call of each; on a CPU of its one thread, whatever else runs."""
    now = time.process_time if device == "cpu" else time.perf_counter
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, own in zip(ways, seconds, strict=True):
            start = now()
            way()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                own.append(now() - start)
    return [1000 * statistics.median(own) for own in seconds]


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 where an answer differs."""
    args = arguments(argv)
    torch.set_num_threads(1)
    query = random_query(args.queries, args.classes, args.width, args.device)
    query = (normalize(query[0], dim=-1), *query[1:])
    has_faiss = args.device == "cpu" and importlib.util.find_spec("faiss") is not None
    figures = []
    for num_entries in args.entries:
        bank = random_bank(num_entries, args.classes, args.width, args.device)
        ways: dict[str, Callable[..., Any]] = {"by_classes": by_classes, "whole_bank": by_mask}
        ways = {name: partial(way, bank, query) for name, way in ways.items()}
        if has_faiss:
            index = index_of(bank)
            ways["faiss"] = partial(by_faiss, bank, query, index)
            ways["faiss_all"] = partial(nearest_of_all, bank, query, index)
        same = all(agree(ways["by_classes"](), ways[name]()) for name in ways if name != "faiss_all")
        times = dict(zip(ways, medians(list(ways.values()), args.repeats, args.device), strict=True))
        figures.append({"entries": num_entries, "same_answers": same} | {f"{k}_ms": v for k, v in times.items()})
    names = {"whole_bank_ms": "whole bank, ms", "by_classes_ms": "mined classes, ms"}
    names |= {"faiss_ms": "faiss, mined classes, ms", "faiss_all_ms": "faiss, of all, ms"} if has_faiss else {}
    rows = [[f["entries"], *(f[key] for key in names), f["by_classes_ms"] / f["whole_bank_ms"]] for f in figures]
    print(f"{args.queries} queries, {args.classes:,} classes, width {args.width}, one thread; commit {code_commit()}\n")
    digits = ("", *(".1f" for _ in names), ".3f")
    print(tabulate(rows, ["entries", *names.values(), "ratio"], tablefmt="github", intfmt=",", floatfmt=digits))
    if not has_faiss:
        print("without faiss: it is not installed (pip install faiss-cpu), or this is no CPU")
    if args.output:
        write_json(
            args.output, {"commit": code_commit(), "arguments": vars(args), "has_faiss": has_faiss, "figures": figures}
        )
    return 0 if all(f["same_answers"] for f in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
