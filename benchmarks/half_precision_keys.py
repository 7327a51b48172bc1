"""Whether a bank finds the same neighbours by keys in half precision: real tokens, those of a run's own bank.

Every entry asks for its neighbours among the other entries of its label and of the five classes nearest to it, with
keys in fp32, and with keys that were rounded and read back, as a table in half the memory would give them.

    python benchmarks/half_precision_keys.py output/.../CAPT/vit_b16_ep20_on_ZeroshotCLIP/seed*
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import torch
from tabulate import tabulate
from torch import Tensor

from trainers.capt.bank.confusion_bank import ConfusionBank

NUM_PARTNERS, NUM_REPRESENTATIVES = 5, 8


def queries(bank: ConfusionBank) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Look ``(M, L)``, label ``(M,)``, partners ``(M, 5)`` and own image ``(M,)`` of every entry."""
    cls, layout, label, index = (getattr(bank.entries, name)[:-1] for name in ("cls", "layout", "label", "index"))
    look = torch.cat([cls.float(), layout], dim=1)  # ConfusionBank.look of the entries themselves
    keys = bank.likeness.keys(look)
    mean = keys.new_zeros(bank.num_classes, keys.shape[1]).index_add_(0, label, keys)
    near = (keys @ torch.nn.functional.normalize(mean, dim=1).t()).scatter(1, label.unsqueeze(1), -torch.inf)
    return look, label, near.topk(min(NUM_PARTNERS, bank.num_classes - 1), dim=1).indices, index


def compare(bank: ConfusionBank, dtype: torch.dtype) -> tuple[float, float, float]:
    """Share of entries whose neighbours are the same as a list, as a set, and the largest change of a similarity."""
    query = queries(bank)
    keys = bank.filed.keys
    whole = bank.retrieve(*query, NUM_REPRESENTATIVES, by_label=True)
    bank.filed.keys = keys.to(dtype).float()
    try:
        rounded = bank.retrieve(*query, NUM_REPRESENTATIVES, by_label=True)
    finally:
        bank.filed.keys = keys
    as_list = (whole.entry == rounded.entry).all(dim=1).float().mean()
    as_set = (whole.entry.sort(dim=1).values == rounded.entry.sort(dim=1).values).all(dim=1).float().mean()
    return float(as_list), float(as_set), float((whole.similarity - rounded.similarity).abs().max())


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="folders of CAPT runs")
    rows = []
    for folder in parser.parse_args(argv).run:
        bank = ConfusionBank.load(folder / "confusion_bank.safetensors")
        for dtype in (torch.float16, torch.bfloat16):
            as_list, as_set, most = compare(bank, dtype)
            rows.append([folder.name, len(bank), str(dtype)[6:], 100 * as_list, 100 * as_set, most])
    head = ["run", "entries", "keys", "same order, %", "same entries, %", "largest change of a cosine"]
    print(tabulate(rows, head, "github", floatfmt=("", "", "", ".2f", ".2f", ".1e")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
