"""``python -m capt_tools`` is ``capt``, also in a checkout that is not installed."""

from .cli import main

if __name__ == "__main__":
    main()
