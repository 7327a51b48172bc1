"""The process of a trial: runs a host's entry point with a trainer that only writes down what it is asked to do.

    python trial_run.py FOUND.json ENTRY ARGUMENT...     # in the host's folder

It imports nothing of this package, since it runs among the host's modules.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

found_file, entry, *arguments = sys.argv[1:]
root = os.getcwd()
asked: list[tuple[str, int]] = []  # name of what the entry point asked of its trainer, and the line


def answer(**more: Any) -> NoReturn:
    """Write down what was found, and end before the host does anything more."""
    with open(found_file, "w", encoding="utf-8") as file:
        json.dump({"asked": asked, **more}, file)
    os._exit(0)


class Trainer:
    """Stands in for the trainer; ends the trial where it is told to train."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def note(*args: Any, **kwargs: Any) -> None:
            asked.append((name, traceback.extract_stack()[-2].lineno or 0))
            if name == "train":
                answer()

        return note


def build(cfg: Any, *args: Any, **kwargs: Any) -> Trainer:
    """In the place of Dassl's ``build_trainer``."""
    from dassl.engine import TRAINER_REGISTRY

    TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    asked.append(("build_trainer", 0))
    return Trainer()


def describe(error: BaseException) -> dict[str, Any]:
    """The error that came first, and where in the host's own files."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if os.path.abspath(frame.filename).startswith(root + os.sep)]
    place = (os.path.relpath(own[-1].filename, root), own[-1].lineno) if own else (entry, 0)
    words = str(error).strip().splitlines()
    lacks = error.name if isinstance(error, ModuleNotFoundError) else None
    return {"error": type(error).__name__, "message": words[0] if words else "", "place": place, "lacks": lacks}


def main() -> None:
    sys.path[0] = root
    sys.argv = [entry, *arguments]
    try:
        __import__("capt_compat")
        import dassl.engine
        import dassl.utils

        vars(dassl.engine)["build_trainer"] = build
        vars(dassl.utils)["collect_env_info"] = lambda: "left out of a trial"  # takes seconds
        runpy.run_path(entry, run_name="__main__")
    except BaseException as error:
        answer(**describe(error))
    answer()


if __name__ == "__main__":
    main()
