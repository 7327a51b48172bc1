"""Trains a small CLIP from scratch and saves it in OpenAI's layout, for demos and tests without a download.

    python -m capt_tools.draw_glyphs glyphs.tar
    capt pretrain small.pt --images glyphs.tar --epochs 30 --eval-dataset Glyphs --root data

Training pictures come from image tars or folders (a sub-folder a class, `classnames.txt` with their names) and from
splits of registered data sets; all are merged by class name. Captions are templates filled with the names. Precision
and attention kernel are measured at the start. A killed run continues when the same command is given again. The result
is a plain fp16 state dict: `MODEL.BACKBONE.NAME small.pt`.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compat  # noqa: F401  (makes Dassl importable)

import torch

from .pretraining import model as clip_model
from .pretraining import sources
from .pretraining.training import Engine, Trainer
from .pretraining.zero_shot import evaluate
from .tool import parser_of

if TYPE_CHECKING:
    from clip.model import CLIP

TEMPLATES = (
    "a photo of a {}.",
    "a drawing of a {}.",
    "a picture of the {}.",
    "a small {} on a colourful background.",
    "{}.",
)


def build_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, show_defaults=True)
    add = parser.add_argument
    add("out", help="file to write; if it is there, only the evaluation runs")
    data = parser.add_argument_group("training pictures")
    data.add_argument("--images", nargs="+", default=[], metavar="PATH", help="image tars or folders")
    data.add_argument("--classnames", help="lines `folder<TAB>name, other name` for all --images")
    data.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="registered data sets")
    data.add_argument("--root", default="data", help="where the data sets are")
    data.add_argument("--split", default="val", choices=("train", "val", "test"), help="their split to train on")
    data.add_argument("--templates", nargs="+", default=list(TEMPLATES), help="captions, each with one {}")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--image-size", type=int, default=48, help="pixels a side")
    sizes.add_argument("--patch", type=int, default=8, help="pixels a side; divides --image-size")
    sizes.add_argument("--vision-width", type=int, default=128, help="multiple of 64")
    sizes.add_argument("--vision-layers", type=int, default=4, help="blocks")
    sizes.add_argument("--text-width", type=int, default=64, help="multiple of 64")
    sizes.add_argument("--text-layers", type=int, default=2, help="blocks")
    sizes.add_argument("--embed-dim", type=int, default=64, help="width of the joint space")
    run = parser.add_argument_group("training")
    budget = run.add_mutually_exclusive_group()
    budget.add_argument("--epochs", type=int, default=30, help="passes over the pictures")
    budget.add_argument("--minutes", type=float, help="instead: as many epochs as fit, by the measured speed")
    run.add_argument("--batch", type=int, default=128, help="pictures a step")
    run.add_argument("--lr", type=float, default=1e-3, help="peak; one warm-up epoch, then cosine")
    run.add_argument("--weight-decay", type=float, default=0.05, help="AdamW, on matrices")
    run.add_argument("--min-area", type=float, default=0.5, help="smallest share of a picture that a crop keeps")
    run.add_argument("--seed", type=int, default=1, help="of weights, order, crops and captions")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    run.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="auto: the faster one")
    run.add_argument("--attention", default="auto", choices=("auto", "math", "flash"), help="auto: the faster kernel")
    run.add_argument("--checkpoint-every", type=int, default=1, metavar="EPOCHS", help="to resume from")
    held_out = parser.add_argument_group("evaluation")
    held_out.add_argument("--eval-dataset", metavar="NAME", help="registered data set for zero-shot accuracy")
    held_out.add_argument("--eval-split", default="test", choices=("train", "val", "test"), help="its split")
    held_out.add_argument("--eval-template", default="a photo of a {}.", help="prompt")
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what does not fit together ends with argparse's exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.images and not args.dataset and not Path(args.out).exists():
        parser.error("nothing to train on; give --images or --dataset")
    for template in [*args.templates, args.eval_template]:
        if template.count("{}") != 1:
            parser.error(f"a template must hold {{}} once, got {template!r}")
    for flag in ("epochs", "batch", "checkpoint_every"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(args, flag)}")
    if not 0 < args.min_area <= 1:
        parser.error(f"--min-area must be in (0, 1], got {args.min_area}")
    if args.minutes is not None and args.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {args.minutes}")


def load_pictures(args: argparse.Namespace) -> sources.Pictures:
    """All training pictures that the command line names."""
    class_names = sources.read_class_names(args.classnames) if args.classnames else None
    parts = [sources.read_images(path, args.image_size, class_names) for path in args.images]
    parts += [sources.read_dataset(name, args.root, args.split, args.image_size) for name in args.dataset]
    pictures = sources.merge(parts)
    print(f"{len(pictures.labels)} pictures under {len(pictures.names)} class names", flush=True)
    return pictures


def build_model(args: argparse.Namespace, device: torch.device) -> CLIP:
    """A fresh model; its weights depend on the seed alone."""
    torch.manual_seed(args.seed)
    return clip_model.build(
        image_size=args.image_size,
        patch=args.patch,
        vision_width=args.vision_width,
        vision_layers=args.vision_layers,
        text_width=args.text_width,
        text_layers=args.text_layers,
        embed=args.embed_dim,
    ).to(device)


def fingerprint(args: argparse.Namespace, pictures: sources.Pictures) -> str:
    """What must be the same for a checkpoint to be continued: settings and pictures."""
    ignored = {"out", "root", "images", "classnames", "dataset", "checkpoint_every", "device"}
    settings = {k: v for k, v in vars(args).items() if k not in ignored and not k.startswith("eval_")}
    digest = hashlib.sha256(json.dumps([settings, pictures.names], sort_keys=True).encode())
    digest.update(pictures.images.numpy().data)
    digest.update(pictures.labels.numpy().data)
    return digest.hexdigest()


def choose_engine(args: argparse.Namespace, trainer: Trainer) -> tuple[Engine, float]:
    """The fastest of the allowed precisions and attention kernels, and its images a second, by measurement."""
    precisions = ("fp32", "bf16") if args.precision == "auto" else (args.precision,)
    kernels = ("math", "flash") if args.attention == "auto" else (args.attention,)
    engines = [Engine(precision, kernel) for precision in precisions for kernel in kernels]
    speeds = {engine: copy.deepcopy(trainer).trial(engine) for engine in engines}
    for engine, speed in speeds.items():
        print(f"  measured {engine.precision} {engine.attention:5}: {speed:,.0f} images/s", flush=True)
    best = max(speeds, key=lambda engine: speeds[engine])
    print(f"precision {best.precision}, attention {best.attention} ({trainer.device})", flush=True)
    return best, speeds[best]


def read_checkpoint(path: Path, expected: str) -> dict[str, Any] | None:
    """The state to continue from, None without a checkpoint.

    Raises:
        ValueError: it is another run's.
    """
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["fingerprint"] != expected:
        raise ValueError(
            f"{path} belongs to a run with other settings or pictures; delete it or give another file name"
        )
    return state


def train(args: argparse.Namespace, pictures: sources.Pictures, device: torch.device) -> CLIP:
    """Trains, or continues a killed training; writes checkpoints beside the output."""
    model = build_model(args, device)
    trainer = Trainer(
        model,
        pictures,
        args.templates,
        batch=args.batch,
        lr=args.lr,
        weight_decay=args.weight_decay,
        min_area=args.min_area,
        seed=args.seed,
    )
    path = Path(f"{args.out}.checkpoint")
    identity = fingerprint(args, pictures)
    state = read_checkpoint(path, identity)
    if state is None:
        engine, speed = choose_engine(args, trainer)
        epochs = max(1, int(args.minutes * 60 * speed / len(pictures.labels))) if args.minutes else args.epochs
    else:
        trainer.restore(state)
        engine, epochs = Engine(*state["engine"]), state["epochs"]
        print(f"Continuing {path} behind epoch {trainer.epoch}", flush=True)
    while trainer.epoch < epochs:
        loss, speed = trainer.train_epoch(epochs, engine)
        left = (epochs - trainer.epoch) * len(pictures.labels) / speed
        print(
            f"epoch {trainer.epoch}/{epochs}  loss {loss:.4f}  scale {model.logit_scale.exp().item():.1f}  "
            f"{speed:,.0f} images/s  {left:.0f} s left",
            flush=True,
        )
        if trainer.epoch % args.checkpoint_every == 0 and trainer.epoch < epochs:
            extra = {"fingerprint": identity, "engine": [engine.precision, engine.attention], "epochs": epochs}
            clip_model.write_atomically({**trainer.state(), **extra}, path)
    return model


def report(args: argparse.Namespace, device: torch.device) -> None:
    """Prints the zero-shot accuracy of the file as written, fp16 rounding included."""
    from trainers.capt.backbone.prompted_clip import load_clip

    model = load_clip(args.out).to(device)
    size = int(model.visual.input_resolution)
    pictures = sources.read_dataset(args.eval_dataset, args.root, args.eval_split, size)
    for name, result in evaluate(model, pictures, args.eval_template).items():
        print(
            f"zero-shot {args.eval_dataset} {args.eval_split} {name:4}: {result.plain:.2f} % plain, "
            f"{result.per_class:.2f} % mean per class ({result.classes} classes, {result.images} pictures)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit code."""
    args = parse_args(argv)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
    started = time.perf_counter()
    try:
        if Path(args.out).exists():
            print(f"{args.out} is there; delete it to train again")
        else:
            model = train(args, load_pictures(args), device)
            clip_model.save(model, args.out)
            Path(f"{args.out}.checkpoint").unlink(missing_ok=True)
            size = Path(args.out).stat().st_size / 1e6
            print(f"Saved {args.out} ({size:.1f} MB) after {time.perf_counter() - started:.0f} s")
        if args.eval_dataset:
            report(args, device)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"pretrain_clip: {error}", file=sys.stderr)
        return 1
    return 0
