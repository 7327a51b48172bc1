"""Image features before and after CAPT, with labels, names and paths (npz), and a t-SNE or UMAP picture of both.

    capt features --run output/caltech101/CAPT/vit_b16_ep20_on_ZeroshotCLIP_16shots/seed1
    capt features --run RUN --classes ketch schooner --output ketch

Takes the run's test images. ``features.npz`` holds ``before`` and ``after`` ``(M, D)`` normalised, ``labels`` ``(M,)``,
``classnames`` ``(C,)``, ``paths`` ``(M,)`` and ``text_features`` ``(C, D)``. The picture needs the extra
``report``, and umap-learn for ``--method umap``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .house import install
from .report.evidence import images_root, trained_folder
from .report.options import add_image_root, add_model_places, add_run, load_predictor, model_places
from .report.runs import ReportError, RunData, read_run
from .tool import exit_code, parser_of

METHODS = {  # of the picture, and what to do where a package of theirs is not installed
    "tsne": f"{install('report')}, or give --no-picture",
    "umap": f"{install('report')} umap-learn, or leave --method at tsne",
}


def encode(run: RunData, root: Path, places: np.ndarray, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """The arrays of ``features.npz`` for the chosen test images."""
    predictor = load_predictor(trained_folder(run.folder), run.record["classnames"], **model_places(args))
    paths = [run.paths[place] for place in places]
    before, after = [], []
    for _, output in predictor.batches([root / path for path in paths], shown=run.is_shown):
        before.append(output.z.float().cpu().numpy())
        after.append(output.refinement.z.detach().float().cpu().numpy())
    return {
        "before": np.concatenate(before),
        "after": np.concatenate(after),
        "labels": run.labels[places],
        "classnames": np.array(run.record["classnames"]),
        "paths": np.array(paths),
        "text_features": predictor.model.base.text_features.float().cpu().numpy(),
    }


def place_points(features: np.ndarray, method: str) -> np.ndarray:
    """``(M, 2)`` places in the picture of features ``(M, D)``; method is "tsne" or "umap"."""
    if method == "umap":
        from umap import UMAP

        neighbours = min(15, len(features) - 1)
        reducer = UMAP(neighbours, metric="cosine", random_state=0, n_jobs=1)
        return np.asarray(reducer.fit_transform(features))
    from sklearn.manifold import TSNE

    perplexity = max(1.0, min(30.0, (len(features) - 1) / 3))
    reducer = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    return np.asarray(reducer.fit_transform(features))


def draw(arrays: dict[str, np.ndarray], path: Path, num_classes: int, method: str) -> None:
    """Both kinds of features in one space, side by side, of the classes with most images."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    labels = arrays["labels"]
    most = np.argsort(-np.bincount(labels), kind="stable")[:num_classes]
    shown = [c for c in most if (labels == c).any()]
    chosen = np.flatnonzero(np.isin(labels, shown))
    both = np.concatenate([arrays["before"][chosen], arrays["after"][chosen]])
    points = place_points(both, method)
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.6), sharex=True, sharey=True, layout="constrained")
    colours = plt.get_cmap("tab20")
    for axis, title, part in zip(axes, ("base model", "CAPT"), np.split(points, 2), strict=True):
        for place, c in enumerate(shown):
            mine = labels[chosen] == c
            axis.scatter(*part[mine].T, s=9, color=colours(place % 20), label=str(arrays["classnames"][c]))
        axis.set(title=title, xticks=[], yticks=[])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, markerscale=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def export(args: argparse.Namespace) -> None:
    """Write the features and the picture."""
    run = read_run(args.run)
    root = images_root(run, args.images)
    places = np.arange(len(run.labels))
    if args.classes:
        names = run.record["classnames"]
        unknown = sorted(set(args.classes) - set(names))
        if unknown:
            raise ReportError(f"{unknown[0]!r} is no class of this run; its classes are {sorted(names)}")
        places = np.flatnonzero(np.isin(run.labels, [names.index(name) for name in args.classes]))
    arrays: dict[str, Any] = encode(run, root, places, args)
    out = args.output or args.run / "features"
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "features.npz", **arrays)
    print(f"{out / 'features.npz'}: {len(places):,} images, {arrays['before'].shape[1]} numbers each")
    if not args.no_picture:
        picture = out / f"{args.method}.png"
        draw(arrays, picture, args.num_classes, args.method)
        print(picture)


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    add_run(parser)
    parser.add_argument("--output", type=Path, help="folder to write to (default: features/ in the run)")
    add_image_root(parser)
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only test images of these classes")
    parser.add_argument("--num-classes", type=int, default=12, help="classes in the picture (default: 12)")
    parser.add_argument("--method", choices=tuple(METHODS), default="tsne", help="of the picture (default: tsne)")
    parser.add_argument("--no-picture", action="store_true", help="write features.npz alone")
    add_model_places(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export; return 0, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: export(args), optional=("matplotlib", "sklearn", "umap"), hint=METHODS[args.method])
