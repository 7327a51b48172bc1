"""From a folder of your own images to a trained CAPT, a table beside zero-shot CLIP, and the confusion report.

    capt quick photos
    capt quick photos 8 --epochs 5 --base CoOp

The folder holds one folder of images per class, or train/, val/ and test/ of such folders; SHOTS images of each class
are trained on, and a class with fewer is taken whole. Runs go to output/quick/<name of the folder>. Every flag can be
given as a variable, as for scripts/capt/quick.sh.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .plan import folders
from .plan.command import choose
from .plan.flags import add_flags, environ_of, settings_here
from .plan.lane import Lane
from .plan.methods import method_of
from .plan.protocols import plan
from .plan.runner import Runner, quoted
from .plan.script import exit_code
from .plan.settings import Settings
from .plan.steps import StopError
from .tool import parser_of

__all__ = ["main", "quick"]

FLAGS = ("backbone", "size", "seeds", "cfg", "epochs", "base", "output", "opts", "variant")


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv``."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", help="one folder of images per class")
    parser.add_argument("shots", nargs="?", default="", help="training images per class (16)")
    add_flags(parser, *FLAGS)
    args = parser.parse_args(argv)
    environ = environ_of(args)
    return exit_code(lambda: quick(args.folder, args.shots, environ, settings_here(environ)))


def script() -> int:
    """scripts/capt/quick.sh, which has made the path absolute."""
    folder, shots = [*sys.argv[1:], "", ""][:2]
    return exit_code(lambda: quick(folder, shots, os.environ, Settings.read()))


def quick(folder: str, shots: str, environ: Mapping[str, str], settings: Settings) -> int:
    """Zero-shot CLIP and CAPT on a folder, their table and the report.

    Args:
        folder: the images.
        shots: training images per class; empty: as the settings say.
        environ: tells whether SEEDS and OUTPUT were given.
        settings: all else.

    Raises:
        StopError: there is no such folder, the output is another folder's, or a run failed.
    """
    if not folder:
        raise StopError("usage: bash scripts/capt/quick.sh FOLDER [SHOTS]")
    if not os.path.isdir(folder):
        raise StopError(f"no folder {folder}")
    folder = os.path.abspath(folder)
    settings = replace(
        settings,
        data=folder,
        shots=shots or settings.shots,
        seeds=settings.seeds if environ.get("SEEDS") else ("1",),
        output=environ.get("OUTPUT") or f"output/quick/{os.path.basename(folder)}",
    )
    _claim(settings, folder)
    capt = method_of("CAPT")
    with Lane() as lane:
        runner = Runner(settings, lane=lane)
        runner.run(plan(settings, method_of("ZeroshotCLIP"), "zeroshot", "folder", "vit_b16"))
        runner.run(plan(settings, capt, "few_shot", "folder", settings.shots))

    tag = choose(settings, capt, "few_shot", "folder").tag
    runs = [folders.trained(settings, "folder", "CAPT", tag, seed) for seed in settings.seeds]
    output = settings.output
    compare = runner.tool("compare", output)
    report = runner.tool("report", *runs, "--images", folder, "--output", f"{output}/report")
    runner.say(f"{quoted(compare)}\n{quoted(report)}")
    if settings.is_dry:
        return 0
    runner.start(compare)
    runner.start(report)
    predict = quoted(runner.tool("predict", "--run", runs[0]))
    runner.say(f"\nReport: {output}/report/report.html\nPredict: {predict}IMAGE_OR_FOLDER...")
    return 0


def _claim(settings: Settings, folder: str) -> None:
    """Note whose runs the output folder holds; stop where they are those of another folder."""
    note = Path(settings.output, "folder.txt")
    if note.is_file() and (other := note.read_text(encoding="utf-8").rstrip("\n")) != folder:
        raise StopError(f"{settings.output} holds the runs of {other}; set OUTPUT to another folder")
    if not settings.is_dry:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{folder}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(script())
