"""Who is confused with whom, before and after, in one HTML file: ``capt report`` in a checkout.

python scripts/confusion_report.py RUN [RUN...] --output report
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.confusion_report import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
