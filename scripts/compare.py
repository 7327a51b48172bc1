"""The papers' tables from the runs below output folders: ``capt compare`` in a checkout.

python scripts/compare.py output --published
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.compare import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
