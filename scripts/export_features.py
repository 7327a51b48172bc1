"""Image features before and after CAPT, and a picture of both: ``capt features`` in a checkout.

python scripts/export_features.py --run RUN
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.export_features import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
