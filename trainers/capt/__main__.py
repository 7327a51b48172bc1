"""``python -m capt``: the command line of the tools, where they are installed beside the plugin."""

import sys

try:
    from capt_tools.cli import main
except ModuleNotFoundError as missing:
    if missing.name != "capt_tools":
        raise
    print("error: the commands are in capt_tools, which is missing; pip install capt-prompt-tuning", file=sys.stderr)
    sys.exit(2)

main()
