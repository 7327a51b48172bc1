"""Prompts for a run's confused pairs, by a language model: ``capt prompts`` in a checkout.

python scripts/make_prompts.py --run RUN --dry-run
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.make_prompts import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
