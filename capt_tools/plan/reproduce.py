"""The paper's headline configuration: teacher (PromptSRC on ViT-L/14), student (PromptKD on ViT-B/16), CAPT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from . import folders
from .methods import method_of
from .protocols import plan
from .settings import Settings
from .steps import Plan

__all__ = ["PROTOCOLS", "reproduce"]

# How CAPT's bank is filled and how epochs are chosen.
PROTOCOLS = ("honest", "published")
PARTS = ("base2new_train", "base2new_test")


def reproduce(settings: Settings, environ: Mapping[str, str], dataset: str, seed: str, protocol: str) -> Plan:
    """The three stages, each of which starts from the one before.

    Args:
        settings: of all stages; its output folder is the protocol's.
        environ: TEACHER_CFG and STUDENT_CFG.
        dataset: name of configs/datasets/*.yaml.
        seed: of all stages.
        protocol: one of PROTOCOLS.
    """
    mine, capt_cfg = settings.opts, settings.cfg
    settings = replace(settings, teacher=settings.teacher or "ViT-L/14", base="PromptKD")
    chosen: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    if protocol == "published":
        chosen = ("TEST.FINAL_MODEL", "best_val")
        extra = (*chosen, "TRAINER.CAPT.SELECTION", "test", "TRAINER.CAPT.BANK.SHOTS", "-1")
        settings = replace(settings, loadep="best")
        yield (
            "Protocol published: CAPT's bank is built from the full training set, "
            f"not from the {settings.shots} shots; student and CAPT\n"
            "choose their epoch on the base classes' test images. Base accuracies are optimistic and not few-shot."
        )
    else:
        yield (
            f"Protocol honest: CAPT's bank is built from the {settings.shots} shots; "
            "the last epoch of each stage is taken."
        )
    yield "Under either protocol the student has seen the unlabelled training images of the new classes: transductive."

    if not settings.teacher_dir:
        cfg = environ.get("TEACHER_CFG") or "vit_l14_c2_ep20_batch8_4+4ctx"
        teacher = folders.base2new(settings, "train_base", dataset, "PromptSRC", cfg, seed)
        of_teacher = replace(settings, cfg=cfg, backbone=settings.teacher)
        yield from plan(of_teacher, method_of("PromptSRC"), "base2new_train", dataset, seed)
        settings = replace(settings, teacher_dir=teacher)

    student = method_of("PromptKD")
    cfg = environ.get("STUDENT_CFG") or student.default_cfg("base2new", dataset)
    for part in PARTS:
        yield from plan(replace(settings, cfg=cfg, opts=mine + chosen), student, part, dataset, seed)
    run = folders.base2new(replace(settings, shots="0"), "train_base", dataset, "PromptKD", cfg, seed)
    for part in PARTS:
        of_capt = replace(settings, cfg=capt_cfg, opts=mine + extra, base_dir=run)
        yield from plan(of_capt, method_of("CAPT"), part, dataset, seed)
