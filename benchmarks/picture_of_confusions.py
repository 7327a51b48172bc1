"""README's picture: the pairs of classes that the base model confuses most, and what CAPT has made of their errors.

    bash scripts/quickstart.sh                            # makes the runs
    DEMO=output/quickstart/base2new; RUN=glyphs/shots_16/CAPT/demo_on_ZeroshotCLIP/seed1
    .venv/bin/python benchmarks/picture_of_confusions.py $DEMO/train_base/$RUN $DEMO/test_new/$RUN --pairs 6

One panel a run, a row a pair: an image of each class, and the errors between the two, in both directions, as bars. An
extra of the package brings matplotlib: pip install '.[report]'.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compat  # noqa: E402, F401 - makes `import dassl` work

from capt_tools.report.figures import pair_rows  # noqa: E402
from capt_tools.report.runs import ReportError, RunData, read_run  # noqa: E402
from trainers.capt.run.pictures import read_image  # noqa: E402

TITLES = {"base": "base classes, with {shots} training images each", "new": "new classes, without any training image"}
BEFORE, AFTER = "#c44e52", "#4c72b0"
SIDE = 30  # of a thumbnail, in points


def draw(runs: list[RunData], num_pairs: int, output: Path) -> None:
    """One panel a run, side by side."""
    figure, panels = plt.subplots(
        1, len(runs), figsize=(5.6 * len(runs), 0.62 * num_pairs + 1.2), squeeze=False, layout="constrained"
    )
    for axes, run in zip(panels[0], runs, strict=True):
        draw_panel(axes, run, num_pairs)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def draw_panel(axes: Axes, run: RunData, num_pairs: int) -> None:
    """A run's pairs from top to bottom: errors before and after, names and thumbnails on the left.

    Raises:
        ReportError: the run's method stands on no base model.
    """
    if run.base_predictions is None:
        raise ReportError(f"{run.folder} holds no predictions of a base model; give run folders of CAPT")
    rows = pair_rows(run.labels, run.base_predictions, run.predictions, run.num_classes)[:num_pairs]
    place = np.arange(len(rows))
    base = run.record["base"].replace("ZeroshotCLIP", "zero-shot CLIP")
    for offset, counts, name, color in (
        (-0.19, [row.before or 0 for row in rows], f"errors of {base}", BEFORE),
        (0.19, [row.after for row in rows], f"errors of CAPT on {base}", AFTER),
    ):
        axes.bar_label(axes.barh(place + offset, counts, 0.36, color=color, label=name), padding=3, fontsize=8)
    axes.set_yticks(place, [f"{run.classnames[row.a]}\n{run.classnames[row.b]}" for row in rows], fontsize=9)
    axes.tick_params(axis="y", length=0, pad=2 * SIDE + 14)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    for y, row in enumerate(rows):
        for x, label in ((-1.6, row.a), (-0.5, row.b)):
            box = OffsetImage(thumbnail(run, label), zoom=1)
            axes.add_artist(
                AnnotationBbox(
                    box,
                    (0, y),
                    xybox=(x * (SIDE + 6), 0),
                    xycoords=axes.get_yaxis_transform(),
                    boxcoords="offset points",
                    frameon=False,
                    clip_on=False,
                )
            )
    before, after = (100 * np.mean(p == run.labels) for p in (run.base_predictions, run.predictions))
    title = TITLES.get(run.record["subsample"], "all classes").format(**run.record)
    axes.set_title(f"{title}\naccuracy {before:.2f} → {after:.2f} %", fontsize=10)


def thumbnail(run: RunData, label: int) -> np.ndarray:
    """The first test image of a class, ``(SIDE, SIDE, 3)`` at the resolution of the screen."""
    path = Path(run.record["config"]["DATASET"]["ROOT"], run.paths[int(np.flatnonzero(run.labels == label)[0])])
    return np.asarray(read_image(path, run.is_shown).resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def main(argv: list[str] | None = None) -> int:
    """Read the runs and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of CAPT, tested")
    parser.add_argument("--pairs", type=int, default=6, help="pairs in a panel (default: 6)")
    parser.add_argument("--output", type=Path, default=Path("docs/images/confusions.png"), help="the picture")
    args = parser.parse_args(argv)
    try:
        draw([read_run(folder) for folder in args.runs], args.pairs, args.output)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
