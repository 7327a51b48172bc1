"""CAPT on a base learner of your own: here CLIP that averages several hand-written prompts.

    python examples/own_base_learner.py --trainer CAPT --root DATA --seed 1 --output-dir output/own \\
        --dataset-config-file configs/datasets/glyphs.yaml --config-file configs/trainers/CAPT/demo.yaml \\
        --backbone assets/glyphs_clip.pt INPUT.SIZE "(48, 48)" DATASET.NUM_SHOTS 16

Takes the flags of train.py. A learner that was trained reads its weights from ``spec.directory``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

import train
from trainers.capt.backbone.prompted_clip import PromptedCLIP
from trainers.capt.bases.learners import BASE_LEARNERS, BaseModel, BaseSpec

PROMPTS = ("a photo of a {}.", "a picture of the {}.", "{}.")


class PromptEnsemble(BaseModel):
    """CLIP whose texts are the mean over several prompts."""

    def _text_features(self, classnames: list[str]) -> Tensor:
        """``(C, D)``; normalised by the caller."""
        texts = [self.prompted.text_features([p.format(name) for name in classnames]) for p in PROMPTS]
        return sum(texts) / len(texts)


def load(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """What the trainer calls with the frozen CLIP and TRAINER.CAPT.BASE."""
    return PromptEnsemble(prompted)


def main(argv: list[str] | None = None) -> int:
    """train.py, with one base learner more. Every learner but zero-shot CLIP names a folder; this one reads none."""
    BASE_LEARNERS["PromptEnsemble"] = load
    argv = sys.argv[1:] if argv is None else argv
    return train.main([*argv, "TRAINER.CAPT.BASE.NAME", "PromptEnsemble", "TRAINER.CAPT.BASE.DIR", "none"])


if __name__ == "__main__":
    sys.exit(main())
