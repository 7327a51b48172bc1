"""docs/USE.md speaks of scripts, options and pictures that exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/USE.md").read_text(encoding="utf-8")
SCRIPTS = sorted(set(re.findall(r"scripts/[\w/]+\.(?:py|sh)", TEXT)))
COMMANDS = re.findall(r"python scripts/(\w+)\.py([^\n`#]*)", TEXT)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_exist(script):
    assert (ROOT / script).is_file()


@pytest.mark.parametrize("picture", sorted(set(re.findall(r"\]\((images/[^)]+)\)", TEXT))))
def test_pictures_exist(picture):
    assert (ROOT / "docs" / picture).stat().st_size > 10_000


@pytest.mark.parametrize(("script", "arguments"), COMMANDS)
def test_commands_use_options_that_exist(script, arguments):
    parser = importlib.import_module(f"capt_tools.{script}").build_parser()
    known = {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z-]+", arguments)) <= known


def test_every_picture_of_the_folder_is_shown():
    assert {path.name for path in (ROOT / "docs/images").iterdir()} == set(re.findall(r"images/([\w.]+)\)", TEXT))
