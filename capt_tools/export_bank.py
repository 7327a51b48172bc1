"""The Confusion Bank's entries for other tools: CSV, parquet, and JSON that FiftyOne imports.

    capt export-bank output/quick/photos/folder/CAPT/vit_b16_ep20_on_ZeroshotCLIP_16shots/seed1
    capt export-bank RUN --output bank --format parquet
    capt export-bank MINE --images photos

The bank is a run's, or one that ``capt.ConfusionBank.from_predictions(...).save("MINE")`` made of any model's
confidences. Each entry has an image, its label, the class that it was taken for, its rival (the same, or the runner-up
where it was right), the confidences in the first two, and how torn the model was.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from capt.bank.confusion_bank import ConfusionBank
from capt.bank.exchange import COLUMNS
from capt.run.files import write_atomically, write_json

from .house import install
from .report.evidence import root_of
from .report.options import add_image_root
from .tool import exit_code, parser_of

FORMATS = ("csv", "parquet", "fiftyone")
NAME = "confusion_bank"
Rows = list[dict[str, Any]]


def write_csv(rows: Rows, folder: Path) -> list[Path]:
    """``confusion_bank.csv``, a line an entry."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    path = folder / f"{NAME}.csv"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text.getvalue(), encoding="utf-8", newline=""))
    return [path]


def write_parquet(rows: Rows, folder: Path) -> list[Path]:
    """``confusion_bank.parquet``, the same with types."""
    import pyarrow
    from pyarrow.parquet import write_table

    text, number = pyarrow.string(), pyarrow.float32()
    types = (text, pyarrow.int64(), text, text, text, pyarrow.bool_(), number, number, number)
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema(list(zip(COLUMNS, types, strict=True))))
    path = folder / f"{NAME}.parquet"
    write_atomically(path, partial(write_table, table))
    return [path]


def write_fiftyone(rows: Rows, folder: Path, class_names: Sequence[str], root: Path) -> list[Path]:
    """``fiftyone/labels.json`` and ``predictions.json``, both of its type ``FiftyOneImageClassificationDataset``.

    Images go by absolute paths, so that none is copied, and each is there once, as its most torn entry has it.

    Args:
        rows: entries, the most torn first.
        folder: where to put the folder.
        class_names: the names that FiftyOne counts classes by.
        root: folder that image paths start from.
    """
    place = {name: number for number, name in reversed(list(enumerate(class_names)))}
    labels: dict[str, Any] = {}
    predictions: dict[str, Any] = {}
    for row in rows:
        image = str((root / row["image"]).resolve())
        if image in labels:
            continue
        details = {key: row[key] for key in ("rival", "is_error", "p_label", "intensity", "view")}
        labels[image] = place[row["label"]]
        predictions[image] = {
            "label": place[row["pseudo_label"]],
            "confidence": row["p_pseudo_label"],
            "attributes": {"true_label": row["label"], **details},
        }
    paths = []
    for name, found in (("labels", labels), ("predictions", predictions)):
        paths.append(folder / "fiftyone" / f"{name}.json")
        write_json(paths[-1], {"classes": list(class_names), "labels": found})
    return paths


def export(args: argparse.Namespace) -> None:
    """Write what `args` asks for, and name each file."""
    bank = ConfusionBank.load(args.bank)
    rows: Rows = bank.rows()
    folder = args.output or (args.bank if args.bank.is_dir() else args.bank.parent) / "bank_export"
    writers: dict[str, Callable[[Rows, Path], list[Path]]] = {
        "csv": write_csv,
        "parquet": write_parquet,
        "fiftyone": partial(write_fiftyone, class_names=bank.classnames, root=_root(args)),
    }
    for name in args.format:
        for path in writers[name](rows, folder):
            print(path)
    print(f"{len(bank):,} entries, {bank.num_confused:,} of them errors, of {bank.num_classes:,} classes")


def _root(args: argparse.Namespace) -> Path:
    """Folder that image paths start from: as the user says, else the data root of the run that the bank lies in."""
    record = (args.bank if args.bank.is_dir() else args.bank.parent) / "results.json"
    if args.images is not None or not record.is_file():
        return args.images or Path()
    return root_of(json.loads(record.read_text(encoding="utf-8")), record.parent)


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("bank", type=Path, help="run folder, folder of a saved bank, or the bank's file")
    parser.add_argument("--output", type=Path, help="folder to write to (default: bank_export/ beside the bank)")
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=["csv", "fiftyone"], help="default: csv and fiftyone"
    )
    add_image_root(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export; return 0, or 2 with one line on stderr."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: export(args), optional=("pyarrow",), hint=install("parquet"))
