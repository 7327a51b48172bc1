"""What it pays to encode once what all prompts begin with: the text tower alone, forward and backward.

Random weights of ViT-B/16's text width, four blocks; the learned tokens are the shared ones. Whole prompts and shared
beginnings take turns; medians of CPU time in one thread, or of a GPU's by the clock. ``shared_prefix.LEAST_SAVED``
follows from these tables.

    python benchmarks/shared_beginnings.py
    python benchmarks/shared_beginnings.py --device cuda --blocks 12 --precision float16
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: F401

import torch
from tabulate import tabulate
from torch import nn

from trainers.capt.backbone import prompted_clip
from trainers.capt.backbone.towers import BlockSizes, Transformer, causal_mask

# Prompts, their tokens, and how many of these they begin with alike.
CASES = [(4, 10, 1), (4, 10, 5), (4, 22, 17), (10, 10, 5), (50, 10, 1), (50, 10, 5), (50, 22, 17), (200, 10, 5)]
LARGE = [(200, 22, 17), (500, 10, 5), (500, 22, 17), (1000, 10, 5), (1000, 22, 17)]  # a GPU's
Tower = tuple[Any, torch.Tensor, nn.LayerNorm, torch.Tensor]  # its blocks stand for those of OpenAI's CLIP


def tower(width: int, num_blocks: int) -> Tower:
    """A frozen text tower: blocks, positions, last norm, projection."""
    torch.manual_seed(0)
    blocks = Transformer(BlockSizes(width, num_blocks, max(1, width // 64), 4 * width, "quick_gelu"), causal_mask(77))
    for parameter in blocks.parameters():
        nn.init.normal_(parameter.requires_grad_(False), std=0.02)
    return blocks, 0.01 * torch.randn(77, width), nn.LayerNorm(width), width**-0.5 * torch.randn(width, width)


def seconds(parts: Tower, texts: int, length: int, begins: int, shared: int) -> float:
    """Seconds of features of ``texts`` prompts and of the ``begins`` learned tokens' gradient: CPU's, or a GPU's."""
    positions = parts[1]
    learned = positions.new_empty(begins, positions.shape[1]).normal_().requires_grad_()
    rest = positions.new_empty(texts, length - begins, positions.shape[1]).normal_()
    prompts = torch.cat([learned.expand(texts, -1, -1), rest], dim=1)
    read = torch.full((texts,), length - 1, device=positions.device)
    if positions.device.type != "cpu":
        torch.cuda.synchronize()
        start = time.perf_counter()
    else:
        start = time.process_time()
    with mock.patch.object(prompted_clip, "pays", return_value=True):
        prompted_clip.encode_text_with(*parts, prompts, read, shared=shared).float().sum().backward()
    if positions.device.type == "cpu":
        return time.process_time() - start
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "float16", "bfloat16"])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    place = {"device": args.device, "dtype": getattr(torch, args.precision)}
    blocks, positions, norm, projection = tower(args.width, args.blocks)
    parts = blocks.to(**place), positions.to(**place), norm.to(**place), projection.to(**place)
    rows = []
    for texts, length, begins in CASES + (LARGE if args.device != "cpu" else []):
        turns = [[seconds(parts, texts, length, begins, p) for p in (0, begins)] for _ in range(args.turns + 1)]
        whole, once = (1000 * statistics.median(way) for way in zip(*turns[1:], strict=True))
        rows.append([texts, length, begins, (texts - 1) * begins, whole, once, once / whole])
    head = ["prompts", "tokens", "shared", "tokens spared", "whole, ms", "shared once, ms", "ratio"]
    print(tabulate(rows, head, "github", floatfmt=("", "", "", "", ".1f", ".1f", ".2f")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
