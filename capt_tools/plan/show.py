"""Print the commands of a protocol, and run nothing.

    capt plan base2new capt:CoOp dtd 1
    capt plan xd maple eurosat 1 --source caltech101 | bash

A METHOD is a folder of scripts/ (coop, maple ...); capt:NAME is CAPT on the base learner NAME. base2new and xd train
and test, few_shot does both in one run; the parts (base2new_train ...) and CoOp's own protocols can be asked for alone.
Every flag can be given as a variable, as for the scripts. What is done already, or said besides, stands behind a #.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from . import folders
from .flags import add_flags, environ_of, settings_here
from .methods import Method, method_in
from .protocols import PROTOCOLS, plan
from .run_all import PROTOCOLS as WHOLE
from .run_all import stages
from .runner import quoted
from .script import exit_code
from .settings import Settings, helps
from .steps import Job, Plan, StopError

__all__ = ["commands", "main", "plan_of"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv``."""
    from ..tool import parser_of  # a repository that holds the plans alone has no use for this command

    parser = parser_of(__doc__)
    parser.add_argument("protocol", choices=[*WHOLE, *(name for name in PROTOCOLS if name not in WHOLE)])
    parser.add_argument("method", help="coop, maple, capt:CoOp ...")
    parser.add_argument("dataset", help="name of configs/datasets/*.yaml")
    parser.add_argument("seed")
    add_flags(parser, *(name for name in helps() if name not in ("base", "seeds")))  # METHOD and SEED say them
    args = parser.parse_args(argv)
    settings = replace(settings_here(environ_of(args)), is_dry=True)

    def show() -> int:
        for line in commands(settings, plan_of(settings, args.protocol, args.method, args.dataset, args.seed)):
            print(line)
        return 0

    return exit_code(show)


def plan_of(settings: Settings, protocol: str, name: str, dataset: str, seed: str) -> Plan:
    """All runs of a protocol, or of a part of one, for one method, data set and seed.

    Raises:
        StopError: a name is unknown, or the method has no such protocol.
    """
    folder, _, base = name.partition(":")
    method, settings = method_in(folder), replace(settings, base=base or "ZeroshotCLIP", seeds=(seed,))
    if protocol in WHOLE:
        first, *others = stages(settings, protocol, name, dataset, seed)
        _check(method, first.protocol)
        return chain.from_iterable(stage.plan for stage in (first, *others))
    _check(method, protocol)
    if protocol == "zeroshot":
        arguments = [dataset, settings.cfg or method.default_cfg(protocol, dataset)]
    elif protocol == "coop_main":
        cfg = settings.cfg or method.default_cfg("few_shot", dataset)
        arguments = [dataset, cfg, settings.ctp, settings.nctx, settings.shots, settings.csc]
    elif protocol == "coop_eval":
        arguments = [dataset, settings.cfg or method.default_cfg("xd", dataset)]
    else:
        arguments = [dataset, seed]
    return plan(settings, method, protocol, *arguments)


def _check(method: Method, protocol: str) -> None:
    if protocol not in method.protocols:
        raise StopError(f"{method.folder} has no {protocol}; it has {', '.join(method.protocols)}")


def commands(settings: Settings, steps: Iterable[Job | str]) -> Iterator[str]:
    """Each command once, though as long as nothing was run several runs may ask for the same base learner."""
    seen = set()
    for step in steps:
        key = step.folder if isinstance(step, Job) else step
        if key in seen:
            continue
        seen.add(key)
        if isinstance(step, str):
            yield f"# {step}"
        elif folders.is_done(step.folder):
            yield f"# Results are available in {step.folder}"
        else:
            yield quoted([settings.python, settings.path("train.py"), *step.arguments])
