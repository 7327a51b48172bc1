#!/usr/bin/env python3
"""Puts CAPT into a CoOp-style repository, or takes it out again: ``capt drop-in`` in a checkout.

python scripts/drop_in.py PATH_TO_REPO [--check | --undo]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.drop_in import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
