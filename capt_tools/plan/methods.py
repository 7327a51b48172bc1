"""What a method is to the scripts: its trainer, its folder, and the yaml that the paper's numbers were made with."""

from __future__ import annotations

from dataclasses import dataclass

from .steps import StopError

__all__ = ["METHODS", "Method", "method_in", "method_of"]

ALL_CLASSES = ("base2new_train", "base2new_test", "few_shot")
EVERY = (*ALL_CLASSES, "xd_train", "xd_test")


@dataclass(frozen=True)
class Method:
    """One trainer.

    Attributes:
        trainer: its name in Dassl's registry.
        folder: its scripts' folder in scripts/.
        yamls: ``protocol/dataset``, ``protocol`` or ``""`` (all others) -> default configuration.
        protocols: the scripts that it has.
        configs: folder of its yamls in configs/trainers/; the trainer's name where there is none given.
    """

    trainer: str
    folder: str
    yamls: dict[str, str]
    protocols: tuple[str, ...] = EVERY
    configs: str = ""

    def default_cfg(self, protocol: str, dataset: str) -> str:
        """Name of the yaml for one protocol and data set."""
        for key in (f"{protocol}/{dataset}", protocol, ""):
            if key in self.yamls:
                return self.yamls[key]
        raise StopError(f"no default configuration for {self.trainer}; set CFG")

    def yaml(self, cfg: str) -> str:
        """Path of a configuration below the repository root."""
        return f"configs/trainers/{self.configs or self.trainer}/{cfg}.yaml"


METHODS = (
    # Zero-shot CLIP has no yaml of its own and reads CoOp's, as in CoOp's repository.
    Method("ZeroshotCLIP", "zsclip", {"": "vit_b16"}, ("base2new_train", "base2new_test", "zeroshot"), configs="CoOp"),
    Method("LinearProbe", "linearprobe", {"": "vit_b16"}, ALL_CLASSES),
    Method("CLIPAdapter", "clipadapter", {"": "vit_b16"}),
    Method("TipAdapter", "tipadapter", {"": "vit_b16"}, ALL_CLASSES),
    Method("TipAdapterF", "tipadapterf", {"": "vit_b16"}, ALL_CLASSES),
    Method(
        "CoOp",
        "coop",
        {
            "base2new": "vit_b16_ctxv1",
            "base2new/imagenet": "vit_b16_ep50_ctxv1",
            "xd": "vit_b16_ep50_ctxv1",
            "few_shot": "vit_b16",
        },
        (*EVERY, "coop_main", "coop_eval"),
    ),
    Method("CoCoOp", "cocoop", {"": "vit_b16_c4_ep10_batch1_ctxv1"}),
    Method(
        "MaPLe",
        "maple",
        {"xd": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets", "": "vit_b16_c2_ep5_batch4_2ctx"},
    ),
    Method("IVLP", "ivlp", {"": "vit_b16_c2_ep5_batch4_2+2ctx"}),
    Method("VPT", "vpt", {"": "vit_b16_c2_ep5_batch4_4"}),
    Method(
        "PromptSRC",
        "promptsrc",
        {
            "xd": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
            "few_shot": "vit_b16_c2_ep50_batch4_4+4ctx_few_shot",
            "": "vit_b16_c2_ep20_batch4_4+4ctx",
        },
    ),
    Method(
        "PromptKD",
        "promptkd",
        {"xd": "vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets", "": "vit_b16_c2_ep20_batch8_4+4ctx"},
        ("base2new_train", "base2new_test", "xd_train"),
    ),
    Method("CAPT", "capt", {"": "vit_b16_ep20"}),
)


def method_of(trainer: str) -> Method:
    """The method of a trainer; one that is not in the table has all protocols and no default yaml."""
    return next((method for method in METHODS if method.trainer == trainer), Method(trainer, trainer.lower(), {}))


def method_in(folder: str) -> Method:
    """The method of a folder in scripts/, by which METHODS names it.

    Raises:
        StopError: there is none.
    """
    for method in METHODS:
        if method.folder == folder:
            return method
    listed = " ".join(sorted(method.folder for method in METHODS))
    raise StopError(f"unknown method {folder}; there are: {listed}")
