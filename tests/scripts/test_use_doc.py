"""docs/USE.md speaks of scripts, commands, options and pictures that exist."""

import importlib
import re
from pathlib import Path

import pytest

from capt_tools.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/USE.md").read_text(encoding="utf-8")
SCRIPTS = sorted(set(re.findall(r"scripts/[\w/]+\.(?:py|sh)", TEXT)))
CALLS = re.findall(r"^(?:\$ |[A-Z_]+=\S+ )*capt ([a-z-]+)( [^\n#]*)", TEXT, flags=re.MULTILINE)
CALLS += re.findall(r"`capt ([a-z-]+)([^`]*)`", TEXT)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_exist(script):
    assert (ROOT / script).is_file()


@pytest.mark.parametrize("picture", sorted(set(re.findall(r"\]\((images/[^)]+)\)", TEXT))))
def test_pictures_exist(picture):
    assert (ROOT / "docs" / picture).stat().st_size > 10_000


def test_every_command_is_told():
    assert {command for command, _ in CALLS} >= set(COMMANDS)


@pytest.mark.parametrize(("command", "arguments"), [call for call in CALLS if "--" in call[1]])
def test_commands_use_options_that_exist(command, arguments):
    parser = importlib.import_module(COMMANDS[command][0]).build_parser()
    known = {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z-]+", arguments)) <= known


def test_every_picture_of_the_folder_is_shown():
    shown = TEXT + (ROOT / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in (ROOT / "docs/images").iterdir()} == set(re.findall(r"images/([\w.]+)\)", shown))
