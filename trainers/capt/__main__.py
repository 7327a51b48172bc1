"""``python -m capt``: the command line of the tools, where they are installed beside the plugin."""

import sys


def main() -> None:
    """Run ``capt``; exit code 2 where the plugin is alone."""
    try:
        from capt_tools.cli import main as command_line
    except ModuleNotFoundError as error:
        if error.name != "capt_tools":
            raise
        line = "error: the commands are in capt_tools, which is missing; pip install capt-prompt-tuning"
        print(line, file=sys.stderr)
        sys.exit(2)
    command_line()


if __name__ == "__main__":
    main()
