"""The command line ``capt``: one name for every tool.

    capt --help
    capt predict --run RUN photos/

No tool is imported before it is asked for, so that help comes at once. Each reads its arguments itself: what stands
behind a command's name reaches it as it is.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

__all__ = ["COMMANDS", "main"]

# Name -> module with a main(argv) that returns the exit code, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("capt_tools.demo", "From nothing to a table, on a CPU and drawn pictures."),
    "quick": ("capt_tools.quick", "From a folder of images to a trained CAPT and its report."),
    "train": ("capt_tools.train_flags", "Train or test any method, with CoOp's flags."),
    "plan": ("capt_tools.plan", "Print the training commands of a protocol."),
    "predict": ("capt_tools.predict", "Predict images with a trained CAPT."),
    "explain": ("capt_tools.explain", "Say why a trained CAPT answers as it does."),
    "report": ("capt_tools.confusion_report", "Who is confused with whom, and why: one HTML file."),
    "features": ("capt_tools.export_features", "Image features before and after CAPT, and a picture of both."),
    "export-bank": ("capt_tools.export_bank", "The Confusion Bank for other tools: CSV, parquet, FiftyOne."),
    "sweep": ("capt_tools.sweep", "Many runs, on Slurm or on this machine."),
    "compare": ("capt_tools.compare", "Tables of the runs below output folders."),
    "prompts": ("capt_tools.make_prompts", "Sentences about confused pairs, by a language model."),
    "get-data": ("capt_tools.get_data", "Fetch data sets into CoOp's folders, by torchvision."),
    "check-data": ("capt_tools.check_data", "Check which data sets are complete."),
    "pretrain": ("capt_tools.pretrain_clip", "Train a small CLIP from scratch."),
    "drop-in": ("capt_tools.drop_in", "Put CAPT into a CoOp-style repository, or take it out."),
}


class Tool(click.Command):
    """A command whose arguments are read by the tool."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, short_help=summary, add_help_option=False)
        self.module = module

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> NoReturn:
        sys.argv[0] = ctx.command_path  # by which argparse calls the tool
        ctx.exit(importlib.import_module(self.module).main(ctx.args))


class Tools(click.Group):
    """Lists its commands as they were given, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


tools = Tools(
    "capt",
    commands={name: Tool(name, *entry) for name, entry in COMMANDS.items()},
    help="""CAPT, confusion-aware prompt tuning of CLIP: train it, use it, see what it confuses.

    `capt COMMAND --help` lists a command's arguments and ends with examples.""",
)


def main() -> None:
    """Run the command line of this process, and end it."""
    tools(prog_name="capt")
