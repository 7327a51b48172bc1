"""Trains a small CLIP from scratch: ``capt pretrain`` in a checkout.

python scripts/pretrain_clip.py small.pt --images glyphs.tar --epochs 30
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.pretrain_clip import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
