"""Data sets into CoOp's folders, by torchvision: ``capt get-data`` in a checkout.

python scripts/get_data.py NAME... --root DATA
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.get_data import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
