"""``python -m capt_tools`` is ``capt``, also in a checkout that is not installed."""

from .cli import main

main()
