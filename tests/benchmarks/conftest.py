"""Makes the benchmarks' modules importable, and the small CAPT of tests/capt."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "benchmarks"), str(TESTS / "capt")]
