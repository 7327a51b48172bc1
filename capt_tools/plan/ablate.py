"""CAPT, base-to-new, with one thing changed at a time, beside its base learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from .methods import method_in, method_of
from .protocols import plan
from .settings import Settings
from .steps import Plan, StopError

__all__ = ["ALL", "LITERAL", "ablate", "options_of"]

# trainers.capt.PUBLISHED, the preset that is as literal as the paper allows; importing it would import torch.
LITERAL = {
    "BANK.SHOTS": "-1",
    "BANK.AT_TEST": "False",
    "BANK.VIEWS": "1",
    "BANK.NEAR_MISSES": "2.0",
    "SYS.ON": "False",
    "SAM.BY_LABEL": "False",
    "SAM.LAYOUT": "False",
    "SAM.SHRINKAGE": "1.0",
    "MGDE.CORRECTIONS": "False",
    "MGDE.EVIDENCE_GATE": "False",
    "MGDE.BETA": "1.0",
    "LOSS.BALANCE": "0.0",
    "LOSS.KEEP": "0.0",
}
EXPERTS = {"MGDE.BETA": "0.1"}  # off by default; what tells experts from experts needs them
# Variant -> what it changes below TRAINER.CAPT.
NAMED = {
    "full": {},
    "no_sys": {"SYS.ON": "False"},
    "no_sam": {"SAM.ON": "False"},
    "no_layout": {"SAM.LAYOUT": "False"},
    "no_corrections": {"MGDE.CORRECTIONS": "False"},
    "fixed_gain": {"MGDE.FIT_GAIN": "False", "MGDE.GAIN": "0.5"},
    "mgde": EXPERTS,
    "no_sem": EXPERTS | {"SEM.ON": "False"},
    "no_confuse": EXPERTS | {"LOSS.CONFUSE": "0.0"},
    "no_keep": EXPERTS | {"LOSS.KEEP": "0.0"},
    "no_gate": EXPERTS | {"MGDE.EVIDENCE_GATE": "False"},
    "no_balance": EXPERTS | {"LOSS.BALANCE": "0.0"},
    "no_bank_at_test": {"BANK.AT_TEST": "False"},
    "errors_only": {"BANK.NEAR_MISSES": "2.0"},
    "by_pair": {"SAM.BY_LABEL": "False"},
    "soft_counts": {"BANK.COUNTS": "soft"},
    "full_set": {"BANK.SHOTS": "-1"},
    "zeroshot": {"BANK.SOURCE": "zeroshot"},
    "literal": LITERAL,
}


def _whole(key: str) -> Callable[[str], dict[str, str]]:
    return lambda value: {key: value}


def _decimal(key: str, **more: str) -> Callable[[str], dict[str, str]]:
    """With a point, as the configuration tells 1.0 from 1."""
    return lambda value: {**{k.replace("__", "."): v for k, v in more.items()}, key: _with_point(value)}


def _with_point(value: str) -> str:
    return value if "." in value else f"{value}.0"


# Variant NAME_VALUE -> what it changes.
VALUED: dict[str, Callable[[str], dict[str, str]]] = {
    "views": _whole("BANK.VIEWS"),
    "k": _whole("SEM.NUM_PAIRS"),
    "K": _whole("SAM.NUM_REPRESENTATIVES"),
    "alpha": _decimal("SAM.ALPHA", **EXPERTS),
    "experts": lambda value: EXPERTS | {"MGDE.TOP_K": value},
    "lambda": _decimal("LOSS.CONFUSE", **EXPERTS),
    "gain": _decimal("MGDE.GAIN", MGDE__FIT_GAIN="False"),
    "sharpness": _decimal("MGDE.SHARPNESS"),
    "keep": _decimal("LOSS.KEEP", **EXPERTS),
    "shots": lambda value: {},
}
PARTS = "full no_sys no_sam no_layout no_corrections fixed_gain mgde no_sem no_confuse no_keep no_gate no_balance"
BANKS = "no_bank_at_test errors_only by_pair soft_counts views_4 full_set zeroshot"
VALUES = (
    "k_1 k_5 k_10 K_2 K_32 alpha_1 alpha_20 experts_1 experts_3 lambda_0.1 lambda_10 gain_0.1 gain_1 sharpness_3 "
    "sharpness_15 keep_1 shots_1 shots_2 shots_4 shots_8"
)
ALL = f"{PARTS} {BANKS} {VALUES} literal"


def options_of(variant: str, fold_config: str = "") -> list[str]:
    """KEY VALUE pairs of a variant.

    Args:
        variant: its name.
        fold_config: the yaml that crossfit trains its folds with.

    Raises:
        StopError: there is no such variant.
    """
    name, underscore, value = variant.partition("_")
    if variant in NAMED:
        changed = NAMED[variant]
    elif variant == "crossfit":
        if not fold_config:
            raise StopError("crossfit needs FOLD_CONFIG, the yaml that its folds are trained with")
        changed = {"BANK.SOURCE": "crossfit", "BANK.FOLD_CONFIG": fold_config}
    elif underscore and name in VALUED:
        changed = VALUED[name](value)
    else:
        raise StopError(f"no variant {variant}; there are: {ALL}")
    return [word for key, value in changed.items() for word in (f"TRAINER.CAPT.{key}", value)]


def ablate(settings: Settings, environ: Mapping[str, str], dataset: str, seeds: Sequence[str]) -> Plan:
    """Every variant and the base learner, seed by seed; ``environ`` has VARIANTS and FOLD_CONFIG.

    Raises:
        StopError: a variant is unknown, before anything is run.
    """
    variants = (environ.get("VARIANTS") or ALL).split()
    changes = [(name, options_of(name, environ.get("FOLD_CONFIG", ""))) for name in variants]
    base = method_of(settings.base)
    for seed in seeds:
        for name, options in changes:
            shots = name.removeprefix("shots_") if name.startswith("shots_") else settings.shots
            changed = replace(settings, shots=shots, variant=name, opts=(*settings.opts, *options))
            yield from _both(changed, "capt", dataset, seed)
        yield from _both(replace(settings, variant="", opts=()), base.folder, dataset, seed)


def _both(settings: Settings, folder: str, dataset: str, seed: str) -> Plan:
    """Train on the base classes, test on the new ones."""
    for protocol in ("base2new_train", "base2new_test"):
        yield from plan(settings, method_in(folder), protocol, dataset, seed)
