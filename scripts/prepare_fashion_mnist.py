"""Makes a CoOp-style data set of the four Fashion-MNIST files.

python scripts/prepare_fashion_mnist.py SOURCE data
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capt_tools.prepare_fashion_mnist import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
