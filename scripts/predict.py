"""Predicts images with a trained CAPT, and says why: ``capt predict`` in a checkout.

python scripts/predict.py --run RUN photos/ --format jsonl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.predict import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
