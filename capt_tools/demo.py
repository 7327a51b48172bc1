"""From nothing to a table on a CPU: every kind of method base-to-new on drawn pictures with planted look-alikes.

    capt demo
    capt demo --seeds "1 2 3" --output output/demo

Zero-shot CLIP, the adapters, CoOp, CoCoOp, MaPLe, and CAPT on zero-shot CLIP, CoOp and MaPLe, with a small CLIP that
comes along. Data and runs go below the current folder; a second call skips what is done.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .plan.flags import add_flags, environ_of, house
from .plan.runner import Runner
from .plan.script import exit_code
from .plan.settings import Settings
from .plan.steps import StopError
from .sweep.run_all import run_all
from .tool import parser_of

__all__ = ["METHODS", "demo", "main"]

METHODS = (
    "zsclip linearprobe clipadapter tipadapter tipadapterf coop cocoop maple capt:ZeroshotCLIP capt:CoOp capt:MaPLe"
)
# Of all that the runs print, the screen shows these lines.
SHOWN = re.compile(r"(Run this job|Results are|CAPT needs|\* accuracy|error:|.* failed:|All runs)")


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv``."""
    parser = parser_of(__doc__)
    add_flags(parser, "data", "seeds", "output")
    environ = environ_of(parser.parse_args(argv))
    return exit_code(lambda: demo(environ, house(), sys.executable))


def demo(environ: Mapping[str, str], house: str = ".", python: str = "python") -> int:
    """Run the methods on the demo's data set and print their table.

    Args:
        environ: METHODS, SEEDS, OUTPUT, DATA and whatever else the scripts take.
        house: as for :class:`Settings`.
        python: where the environment names none.

    Raises:
        StopError: the table could not be made.
    """
    defaults = {"SEEDS": "1", "OUTPUT": "output/quickstart", "METHODS": METHODS}
    # The demo CLIP is too small to gain from threads: a second one triples the CPU time and saves none.
    defaults["OMP_NUM_THREADS"] = "1"
    glyphs = {"BACKBONE": "assets/glyphs_clip.pt", "SIZE": "(48, 48)", "CFG": "demo", "DATASETS": "glyphs"}
    if house != ".":
        glyphs["BACKBONE"] = str(Path(house, glyphs["BACKBONE"]))
    environ = {**environ, **{key: environ.get(key) or value for key, value in defaults.items()}, **glyphs}
    settings = Settings.read(environ, house, python)
    runner = Runner(settings, environ)
    compare = runner.tool("compare", settings.output)
    if settings.is_dry:
        code = run_all("base2new", settings, environ)
        if not code:
            runner.say(" ".join(compare))
        return code

    start, log = time.monotonic(), Path(settings.output, "quickstart.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    runner.say(f"Running {environ['METHODS']} on drawn pictures (data in {settings.data}/glyphs, log in {log})")
    if _logged(settings, environ, log):
        print(*log.read_text(encoding="utf-8").splitlines()[-30:], sep="\n", file=sys.stderr)
        return 1
    runner.start(compare)
    runner.say(
        f"\nTook {time.monotonic() - start:.0f} s. Runs: {settings.output}/base2new; "
        "each folder holds log.txt, results.json, predictions.npz and the checkpoint."
    )
    return 0


def _logged(settings: Settings, environ: Mapping[str, str], log: Path) -> int:
    """Run all, everything that is printed into the log and the lines that tell most on the screen."""
    with open(log, "w", encoding="utf-8", buffering=1) as file:

        def say(line: str) -> None:
            file.write(line + "\n")
            if SHOWN.match(line):
                print(line, flush=True)

        try:
            return run_all("base2new", settings, environ, say)
        except StopError as error:
            say(error.line)
            return error.code


if __name__ == "__main__":
    sys.exit(exit_code(lambda: demo(os.environ)))
