"""The protocols of CoOp and its family: each from settings, a method and its arguments to the runs that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import folders
from .bases import train_base
from .command import choose, epochs, flags, job, model_flags, need_model
from .methods import Method
from .settings import Settings
from .steps import Plan, StopError

__all__ = ["PROTOCOLS", "USAGE", "plan"]

# Protocol -> its arguments; those in brackets may be left out.
USAGE = {
    "base2new_train": "DATASET SEED",
    "base2new_test": "DATASET SEED",
    "xd_train": "[DATASET] SEED",
    "xd_test": "DATASET SEED",
    "few_shot": "DATASET SHOTS",
    "zeroshot": "DATASET CFG",
    "coop_main": "DATASET CFG CTP NCTX SHOTS CSC",
    "coop_eval": "DATASET CFG",
}


def plan(settings: Settings, method: Method, protocol: str, *arguments: str) -> Plan:
    """The runs of one protocol of one method.

    Raises:
        StopError: the method has no such protocol, or one of the names is unknown.
    """
    if protocol not in method.protocols:
        script = f"scripts/{method.folder}/{protocol}.sh"
        raise StopError(f"bash: {script}: No such file or directory", 127)
    if method.trainer == "PromptKD":
        settings = promptkd(settings, protocol, arguments[0])
    yield from PROTOCOLS[protocol](settings, method, *arguments)


def promptkd(settings: Settings, protocol: str, dataset: str) -> Settings:
    """PromptKD's own: all images without labels, and the split that its paper tests on."""
    words = ["TRAINER.MODAL", "cross"]
    if protocol != "xd_train":
        words = ["TEST.SPLIT", "test" if protocol == "base2new_test" and settings.sub != "base" else "val"]
        if dataset in ("fgvc_aircraft", "oxford_flowers", "dtd"):  # the published weight; the yaml's is the others'
            words += ["TRAINER.PROMPTKD.KD_WEIGHT", "200.0"]
    if settings.teacher:
        words += ["TRAINER.PROMPTKD.TEACHER_NAME", settings.teacher]
    if settings.teacher_dir:
        words += ["TRAINER.PROMPTKD.TEACHER_DIR", settings.teacher_dir]
    return replace(settings, shots="0", opts=(*words, *settings.opts))


def base2new_train(settings: Settings, method: Method, dataset: str, seed: str, *_: str) -> Plan:
    """Train on the base classes, test on them."""
    chosen = choose(settings, method, "base2new", dataset)
    folder = folders.base2new(settings, "train_base", dataset, chosen.trainer, chosen.tag, seed)
    words = flags(settings, chosen, dataset, seed, folder)
    if chosen.trainer == "ZeroshotCLIP":
        words.append("--eval-only")
    options, needs = yield from train_base(settings, chosen, "base2new", dataset, seed, plan)
    words += ["DATASET.NUM_SHOTS", settings.shots, "DATASET.SUBSAMPLE_CLASSES", "base", *options, *epochs(settings)]
    yield job(settings, folder, words, needs)


def base2new_test(settings: Settings, method: Method, dataset: str, seed: str, *_: str) -> Plan:
    """Test the model of base2new_train on the new classes, or on those that ``settings.sub`` names."""
    chosen = choose(settings, method, "base2new", dataset)
    model = folders.base2new(settings, "train_base", dataset, chosen.trainer, chosen.tag, seed)
    folder = folders.base2new(settings, f"test_{settings.sub}", dataset, chosen.trainer, chosen.tag, seed)
    words = flags(settings, chosen, dataset, seed, folder)
    is_trained = chosen.trainer != "ZeroshotCLIP"
    if is_trained:
        need_model(settings, model, f"bash scripts/{method.folder}/base2new_train.sh {dataset} {seed}")
        words += model_flags(settings, chosen, model)
    options, needs = yield from train_base(settings, chosen, "base2new", dataset, seed, plan)
    words += ["--eval-only", "DATASET.NUM_SHOTS", settings.shots, "DATASET.SUBSAMPLE_CLASSES", settings.sub, *options]
    yield job(settings, folder, words, (model, *needs) if is_trained else needs)


def xd_train(settings: Settings, method: Method, *arguments: str) -> Plan:
    """Train on all classes of a data set (``settings.source`` where only a seed is given), for other data sets."""
    dataset, seed = arguments[:2] if len(arguments) > 1 else (settings.source, arguments[0])
    yield from _all_classes(settings, method, "xd", dataset, seed)


def xd_test(settings: Settings, method: Method, dataset: str, seed: str, *_: str) -> Plan:
    """Test the model of xd_train on another data set."""
    source = settings.source
    chosen = choose(settings, method, "xd", source)
    model = folders.trained(settings, source, chosen.trainer, chosen.tag, seed)
    folder = folders.evaluated(settings, dataset, chosen.trainer, chosen.tag, seed)
    words = flags(settings, chosen, dataset, seed, folder)
    need_model(settings, model, f"bash scripts/{method.folder}/xd_train.sh {source} {seed}")
    words += model_flags(settings, chosen, model)
    options, needs = yield from train_base(settings, chosen, "xd", source, seed, plan)
    yield job(settings, folder, [*words, "--eval-only", *options], (model, *needs))


def few_shot(settings: Settings, method: Method, dataset: str, shots: str, *_: str) -> Plan:
    """Train and test on all classes, once per seed."""
    settings = replace(settings, shots=shots)
    for seed in settings.seeds:
        yield from _all_classes(settings, method, "few_shot", dataset, seed)


def _all_classes(settings: Settings, method: Method, protocol: str, dataset: str, seed: str) -> Plan:
    chosen = choose(settings, method, protocol, dataset)
    folder = folders.trained(settings, dataset, chosen.trainer, chosen.tag, seed)
    words = flags(settings, chosen, dataset, seed, folder)
    options, needs = yield from train_base(settings, chosen, protocol, dataset, seed, plan)
    words += ["DATASET.NUM_SHOTS", settings.shots, *options, *epochs(settings)]
    yield job(settings, folder, words, needs)


def zeroshot(settings: Settings, method: Method, dataset: str, cfg: str, *_: str) -> Plan:
    """Zero-shot CLIP on all classes."""
    chosen = choose(replace(settings, cfg=cfg), method, "zeroshot", dataset)
    folder = f"{settings.output}/ZeroshotCLIP/{chosen.cfg}/{dataset}"
    yield job(settings, folder, [*flags(settings, chosen, dataset, "", folder), "--eval-only"])


def coop_options(ctp: str, nctx: str, csc: str) -> tuple[list[str], str]:
    """CoOp's settings as options and as a folder name."""
    options = ["TRAINER.COOP.N_CTX", nctx, "TRAINER.COOP.CSC", csc, "TRAINER.COOP.CLASS_TOKEN_POSITION", ctp]
    return options, f"nctx{nctx}_csc{csc}_ctp{ctp}/"


def coop_main(
    settings: Settings, method: Method, dataset: str, cfg: str, ctp: str, nctx: str, shots: str, csc: str, *_: str
) -> Plan:
    """The CoOp paper's few-shot runs, once per seed."""
    settings = replace(settings, cfg=cfg, shots=shots)
    chosen = choose(settings, method, "few_shot", dataset)
    options, inside = coop_options(ctp, nctx, csc)
    for seed in settings.seeds:
        folder = folders.trained(settings, dataset, "CoOp", chosen.cfg, seed, inside)
        words = [*flags(settings, chosen, dataset, seed, folder), *options, "DATASET.NUM_SHOTS", shots]
        yield job(settings, folder, [*words, *epochs(settings)])


def coop_eval(settings: Settings, method: Method, dataset: str, cfg: str, *_: str) -> Plan:
    """Test the model that coop_main trained on the source on another data set, once per seed."""
    settings = replace(settings, cfg=cfg)
    chosen = choose(settings, method, "xd", dataset)
    ctp, nctx, csc = settings.ctp, settings.nctx, settings.csc
    options, inside = coop_options(ctp, nctx, csc)
    how = f"bash scripts/coop/main.sh {settings.source} {chosen.cfg} {ctp} {nctx} {settings.shots} {csc}"
    for seed in settings.seeds:
        model = folders.trained(settings, settings.source, "CoOp", chosen.cfg, seed, inside)
        need_model(settings, model, how)
        folder = folders.evaluated(settings, dataset, "CoOp", chosen.cfg, seed, inside)
        words = flags(settings, chosen, dataset, seed, folder) + model_flags(settings, chosen, model)
        yield job(settings, folder, [*words, "--eval-only", *options], (model,))


PROTOCOLS: dict[str, Callable[..., Plan]] = {
    "base2new_train": base2new_train,
    "base2new_test": base2new_test,
    "xd_train": xd_train,
    "xd_test": xd_test,
    "few_shot": few_shot,
    "zeroshot": zeroshot,
    "coop_main": coop_main,
    "coop_eval": coop_eval,
}
