"""Methods x data sets x seeds of one protocol: done runs are skipped, a failed one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from threading import Event
from typing import NamedTuple

from .lane import Lane
from .methods import method_in
from .protocols import plan
from .runner import Runner
from .settings import Settings
from .steps import Plan, StopError

__all__ = ["DATASETS", "METHODS", "PROTOCOLS", "Stage", "run_all", "stages"]

PROTOCOLS = ("base2new", "xd", "few_shot")
METHODS = "zsclip coop cocoop maple capt:ZeroshotCLIP capt:CoOp"
# The eleven of the papers, less ImageNet.
DATASETS = "caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"


class Stage(NamedTuple):
    """One script's part of what a method does on one data set with one seed."""

    protocol: str
    script: str  # as it is called by hand, below scripts/
    plan: Plan


def stages(settings: Settings, protocol: str, name: str, dataset: str, seed: str) -> Iterator[Stage]:
    """Everything that one method does on one data set with one seed.

    Args:
        settings: all but the base and the seeds.
        protocol: one of PROTOCOLS.
        name: folder of the method's scripts; ``capt:NAME`` is CAPT on the base learner NAME.
        dataset: name of configs/datasets/*.yaml.
        seed: of the runs.
    """
    folder, _, base = name.partition(":")
    settings = replace(settings, base=base or "ZeroshotCLIP", seeds=(seed,))

    def stage(protocol: str, *arguments: str) -> Stage:
        script = " ".join([f"{folder}/{protocol}.sh", *arguments])
        return Stage(protocol, script, plan(settings, method_in(folder), protocol, *arguments))

    if folder == "zsclip" and protocol != "base2new":
        yield stage("zeroshot", dataset, settings.cfg or "vit_b16")
    elif protocol == "base2new":
        yield stage("base2new_train", dataset, seed)
        yield stage("base2new_test", dataset, seed)
    elif protocol == "xd":
        yield stage("xd_train", settings.source, seed)
        yield stage("xd_test", dataset, seed)
    else:
        yield stage("few_shot", dataset, settings.shots)


def run_all(
    protocol: str, settings: Settings, environ: Mapping[str, str], say: Callable[[str], None] | None = None
) -> int:
    """Run everything; 1 if something failed, which is listed then.

    Args:
        protocol: one of PROTOCOLS.
        settings: of all runs.
        environ: of the runs; METHODS, DATASETS and GPUS are read here.
        say: as for :class:`Runner`.

    Raises:
        StopError: protocol or method is unknown, or cannot be spread.
    """
    methods, devices = (environ.get("METHODS") or METHODS).split(), environ.get("GPUS", "").split()
    if protocol not in PROTOCOLS:
        raise StopError(f"unknown protocol {protocol}; there are base2new, xd and few_shot")
    for name in methods:
        method_in(name.partition(":")[0])
    if len(devices) > 1 and protocol == "xd":
        raise StopError("xd trains once for all data sets, so it cannot be spread over GPUS; leave GPUS out")

    pairs = list(product((environ.get("DATASETS") or DATASETS).split(), settings.seeds))
    failed: list[str] = []
    stopped = Event()

    def lane(number: int) -> None:
        """Seeds and data sets of one device stay in order, so CAPT finds the base learner that ran before it."""
        with Lane() as process:
            runner = Runner(settings, {**environ, **_of_lane(devices, number, environ)}, say, process)
            for (dataset, seed), name in product(pairs[number :: max(1, len(devices))], methods):
                if stopped.is_set():
                    return
                try:
                    for stage in stages(settings, protocol, name, dataset, seed):
                        runner.run(stage.plan)
                except StopError as error:
                    if error.line:
                        runner.warn(error.line)
                    failed.append(f"{name} {dataset} seed {seed}: scripts/{stage.script}")

    if len(devices) < 2:
        lane(0)
    else:
        with ThreadPoolExecutor(len(devices)) as pool:
            try:
                list(pool.map(lane, range(len(devices))))
            except BaseException:
                stopped.set()
                raise
    runner = Runner(settings, environ, say)
    if failed:
        runner.warn("\n".join([f"{len(failed)} failed:", *failed]))
        return 1
    runner.say(f"All runs are done in {settings.output}")
    return 0


def _of_lane(devices: list[str], number: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of one lane: its device, and one thread where lanes would take the cores from one another."""
    variables = {"CUDA_VISIBLE_DEVICES": devices[number]} if devices else {}
    if len(devices) > 1 and not environ.get("OMP_NUM_THREADS"):
        variables["OMP_NUM_THREADS"] = "1"
    return variables
