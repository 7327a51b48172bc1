"""CAPT on a base learner of your own: here CLIP that averages several hand-written prompts.

    python train.py --trainer CAPT --root DATA --seed 1 --output-dir output/own \\
        --dataset-config-file configs/datasets/glyphs.yaml --config-file configs/trainers/CAPT/demo.yaml \\
        --backbone assets/glyphs_clip.pt INPUT.SIZE "(48, 48)" DATASET.NUM_SHOTS 16 \\
        TRAINER.CAPT.BASE.NAME PromptEnsemble TRAINER.CAPT.BASE.MODULE examples/own_base_learner.py \\
        TRAINER.CAPT.BASE.OPTIONS.PROMPTS "['a photo of a {}.', '{}.']"

    capt predict --run output/own --base-module examples/own_base_learner.py photos/*.jpg

A learner that was trained reads its weights by ``learner_state(spec, "prompt_learner")``; see docs/BASES.md.
"""

from __future__ import annotations

from torch import Tensor

from capt import BaseModel, BaseSpec, PromptedCLIP, register_base_learner

PROMPTS = ["a photo of a {}.", "a picture of the {}.", "{}."]


class PromptEnsemble(BaseModel):
    """CLIP whose texts are the mean over several prompts."""

    def __init__(self, prompted: PromptedCLIP, prompts: list[str]):
        super().__init__(prompted)
        self.prompts = prompts
        self.options = {"PROMPTS": prompts}  # counts in the digest: other prompts, another base model

    def _text_features(self, classnames: list[str]) -> Tensor:
        """``(C, D)``; normalised by the caller."""
        texts = [self.prompted.text_features([p.format(name) for name in classnames]) for p in self.prompts]
        return sum(texts) / len(texts)


def load(prompted: PromptedCLIP, spec: BaseSpec) -> BaseModel:
    """What the trainer calls with the frozen CLIP and TRAINER.CAPT.BASE."""
    return PromptEnsemble(prompted, list(spec.options.get("PROMPTS", PROMPTS)))


register_base_learner("PromptEnsemble", load)
