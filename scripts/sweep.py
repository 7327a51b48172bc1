"""Methods x data sets x seeds on Slurm or on this machine: ``capt sweep`` in a checkout.

python scripts/sweep.py submit --methods "coop capt:CoOp" --datasets dtd
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.sweep import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
