"""The Confusion Bank for other tools, as CSV, parquet or for FiftyOne: ``capt export-bank`` in a checkout.

python scripts/export_bank.py RUN
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.export_bank import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
