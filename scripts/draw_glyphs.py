"""Writes the pretraining stream of the demo data set as an image tar.

python scripts/draw_glyphs.py glyphs.tar
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.draw_glyphs import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
