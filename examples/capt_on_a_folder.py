"""CAPT on a folder of images, one folder a class: train, then predict in Python.

    python examples/capt_on_a_folder.py photos
    python examples/capt_on_a_folder.py photos 4 --backbone small_clip.pt --size "(48, 48)" --epochs 2

Takes what `capt quick` takes; the runs go to output/quick/<name of the folder>.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in (".", "trainers")]  # a checkout's

import capt  # noqa: E402
from capt_tools import quick  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Train on the folder that the first argument names, and ask the run about one of its images."""
    argv = sys.argv[1:] if argv is None else argv
    code = quick.main(argv)
    if code:
        return code
    folder = Path(argv[0]).resolve()
    where = argv[argv.index("--output") + 1] if "--output" in argv else f"output/quick/{folder.name}"
    (record,) = Path(where, "folder/CAPT").glob("*/seed*/results.json")
    run = capt.load(record.parent)
    image = next(path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    (answer,) = run.predict([image], top_k=2)
    print(f"{image.relative_to(folder)}: {answer.class_name}, {answer.confidences[0]:.0%}")
    print(f"most confused: {run.bank.top_pairs(3)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
