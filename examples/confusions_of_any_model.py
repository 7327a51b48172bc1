"""A model's confusions from its predictions alone: no CLIP, no training, no images.

    python examples/confusions_of_any_model.py

Replace the drawn labels and confidences by your model's; rows are images, columns classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "trainers"))  # not needed where capt is installed

import capt  # noqa: E402
from capt.bank.confusion_bank import JudgedViews  # noqa: E402

CLASSES = ["cup", "mug", "house", "chapel"]


def drawn(num_images: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels ``(M,)`` and confidences ``(M, C)`` of a model that takes many mugs for cups."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(num_images) % len(CLASSES)
    logits = torch.randn(num_images, len(CLASSES), generator=generator) + 4 * torch.eye(len(CLASSES))[label]
    logits[label == 1, 0] += 3.5
    return label, logits.softmax(dim=-1)


def main() -> None:
    """Which pairs are confused, and what another model makes of them."""
    label, probs = drawn()
    views = JudgedViews.of(probs, label, feature=torch.zeros(len(label), 0))  # a bank of counts needs no features
    bank = capt.ConfusionBank.build(CLASSES, [f"image {i}" for i in range(len(label))], [views])
    for one, other, count in bank.top_pairs(3):
        print(f"{one} / {other}: {count:.0f}")

    better = probs.clone()
    better[:, 0] *= 0.2  # a second model, which likes the word cup less
    before, after = probs.argmax(dim=1), better.argmax(dim=1)
    report = capt.confusion_report(label.numpy(), before.numpy(), after.numpy(), len(CLASSES))
    print(f"resolved {report.resolved} %, introduced {report.introduced} %, net {report.net} %")


if __name__ == "__main__":
    main()
