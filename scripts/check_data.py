"""Checks which data sets are complete: ``capt check-data`` in a checkout.

python scripts/check_data.py --root DATA
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.check_data import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
