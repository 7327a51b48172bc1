"""CAPT on what other methods' own train.py leaves: their accuracy and that of the base model, and CAPT's whole life.

    python tests/peers/base_runs.py <folder of the copies> <data> <clip.pt> <side> <output folder> [method ...]

prints two rows a method of docs/BASES.md's table: images that the host's own test, the base model here and CAPT get
right, on base and new classes; whether CAPT, stopped, goes on to the same files; how often ``capt.load`` and ``capt
predict`` say what CAPT's test said. ``data`` is a folder that holds Caltech101 and that may be written to.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent / "trainers")]

import base_life  # noqa: E402
import hosts  # noqa: E402
import run_host  # noqa: E402

COOP = ("TRAINER.COOP.PREC", "fp32", "TRAINER.COCOOP.PREC", "fp32", "TRAINER.COOP.N_CTX", 4)
ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", True)
ATTRIBUTES += tuple(word for i in (1, 2, 3) for word in (f"TRAINER.ATPROMPT.N_ATT{i}", 4))


@dataclass(frozen=True)
class Run:
    """How a method is run by its host, and read here.

    Attributes:
        repository: copy of the host.
        trainer: its name there.
        name: its name here.
        config: yaml of the host.
        options: of the host's run.
        base: of the base learner, ``TRAINER.CAPT.BASE.OPTIONS``.
        dassl: folder of the Dassl that the host ships; "" for any.
    """

    repository: str
    trainer: str
    name: str
    config: str
    options: tuple
    base: tuple = ()
    dassl: str = ""


MMA = ("TRAINER.MMADAPTER.PREC", "fp32", "TRAINER.MMADAPTER.ADAPTER_START", 2, "TRAINER.MMADAPTER.ADAPTER_END", 3)
MMRL = ("TRAINER.MMRL.PREC", "fp32", "TRAINER.MMRL.REP_LAYERS", "[2, 3]", "TRAINER.MMRL.REP_DIM", 32, "TASK", "B2N")
RUNS = {
    "KgCoOp": Run(
        "htyao89+KgCoOp/KgCoOp",
        "KgCoOp",
        "KgCoOp",
        "configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml",
        COOP,
        dassl="htyao89+KgCoOp/Dassl.ProGrad.pytorch",
    ),
    "ProGrad": Run(
        "BeierZhu+Prompt-align/ProGrad.public",
        "ProGrad",
        "ProGrad",
        "configs/trainers/ProGrad/rn50.yaml",
        (*COOP, "LOSS.NAME", "prograd"),
        dassl="BeierZhu+Prompt-align/Dassl.ProGrad.pytorch",
    ),
    "TCP": Run(
        "htyao89+Textual-based_Class-aware_prompt_tuning",
        "TCP",
        "TCP",
        "configs/trainers/TCP/vit_b16_ep100_ctxv1.yaml",
        COOP,
    ),
    "MMA": Run(
        "ZjjConan+Multi-Modal-Adapter",
        "MultiModalAdapter",
        "MMA",
        "configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml",
        (*MMA, "TRAINER.MMADAPTER.ADAPTER_SCALE", 0.1),
        ("ADAPTER_SCALE", 0.1),
    ),
    "MMRL": Run(
        "yunncheng+MMRL",
        "MMRL",
        "MMRL",
        "configs/trainers/MMRL/vit_b16.yaml",
        MMRL,
        ("REP_LAYERS", "[2, 3]"),
    ),
    "CoPrompt": Run(
        "ShuvenduRoy+CoPrompt",
        "CoPrompt",
        "CoPrompt",
        "configs/trainers/coprompt.yaml",
        ("TRAINER.CoPrompt.PREC", "fp32"),
        dassl=hosts.DASSL,  # its transforms are not among the bundled Dassl's
    ),
    "CoOp_ATP": Run(
        "zhengli97+ATPrompt",
        "CoOp_ATP",
        "ATPrompt",
        "configs/trainers/CoOp/vit_b16.yaml",
        (*COOP, *ATTRIBUTES),
        dassl="zhengli97+ATPrompt/Dassl.pytorch",
    ),
    "MaPLe_ATP": Run(
        "zhengli97+ATPrompt",
        "MaPLe_ATP",
        "ATPrompt",
        "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
        ("TRAINER.MAPLE.PREC", "fp32", "TRAINER.MAPLE.PROMPT_DEPTH", 2, *ATTRIBUTES),
        dassl="zhengli97+ATPrompt/Dassl.pytorch",
    ),
}


@dataclass(frozen=True)
class Place:
    """Where the runs take place: copies, data, CLIP, its input's side, and an output folder."""

    copies: Path
    data: Path
    clip: Path
    side: int
    out: Path

    def flags(self, out, subsample, *more, evaluate="", epoch=1):
        """What the host's runs and CAPT's share."""
        argv = ["--root", self.data, "--seed", 1, "--backbone", self.clip, "--output-dir", out]
        argv += ["--dataset-config-file", "configs/datasets/caltech101.yaml"]
        if evaluate:
            argv += ["--model-dir", evaluate, "--load-epoch", epoch, "--eval-only"]
        argv += [*more, "INPUT.SIZE", f"({self.side}, {self.side})", "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", 0]
        argv += ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1]
        return [str(word) for word in [*argv, "DATASET.SUBSAMPLE_CLASSES", subsample]]

    def environment(self):
        """One thread, no GPU."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}

    def call(self, folder, *command):
        """A command's output; an AssertionError with its end where it fails."""
        words = [sys.executable, *map(str, command)]
        done = subprocess.run(words, cwd=folder, env=self.environment(), capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return done.stdout


def images_right(log):
    """Images that a test got right, of how many."""
    total, right = (re.findall(rf"\* {word}: ([\d,]+)", log)[-1].replace(",", "") for word in ("total", "correct"))
    return int(right), int(total)


def host_runs(place, run):
    """Train by the host, test both halves; gives {half: (right, of)}."""
    import torch

    folder = place.out / run.trainer / "host"
    if not folder.is_dir():
        hosts.copy_host(place.copies, run.repository, folder)
        run_host.fit_widths(folder, torch.load(place.clip, map_location="cpu", weights_only=True))
        write_sentences(folder, place.data)
    dassl = str(place.copies / run.dassl) if run.dassl else ""
    prefix = (HERE / "run_host.py", folder, place.clip, dassl)
    own = ("--trainer", run.trainer, "--config-file", run.config)
    trained, found = place.out / run.trainer / "train", {}
    for half, more in (("train", {}), ("base", {"evaluate": trained}), ("new", {"evaluate": trained})):
        flags = place.flags(trained.with_name(half), half.replace("train", "base"), *own, **more)
        log = place.call(folder, *prefix, *flags, *run.options)
        if half != "train":
            found[half] = images_right(log)
    return found


def write_sentences(folder, data):
    """CoPrompt's sentences of Caltech101 are in its copy; drawn data have other classes."""
    path = folder / "gpt_file" / "caltech_prompt.json"
    if path.is_file():
        classes = {c.name for c in (data / "caltech-101" / "101_ObjectCategories").iterdir()}
        known = json.loads(path.read_text())
        plain = {name.replace("_", " ") for name in classes}
        path.write_text(json.dumps({**{name: [f"a photo of a {name}."] * 20 for name in plain}, **known}))


CAPT = ("--trainer", "CAPT", "--config-file", "configs/trainers/CAPT/vit_b16_ep20.yaml")
HALVES = {"base": "capt", "new": "capt_new"}  # half of the classes -> folder of CAPT's run


def capt_options(place, run):
    """Keys of a CAPT that stands on what the host left."""
    base = ["TRAINER.CAPT.BASE.NAME", run.name, "TRAINER.CAPT.BASE.DIR", place.out / run.trainer / "train"]
    pairs = zip(run.base[::2], run.base[1::2], strict=True)
    base += [word for key, value in pairs for word in (f"TRAINER.CAPT.BASE.OPTIONS.{key}", value)]
    return [*base, "TRAINER.CAPT.PREC", "fp32"]


def capt_runs(place, run):
    """CAPT on it: train, test new classes; gives {half: (right of the base, right of CAPT, of)}."""
    folder, found = place.out / run.trainer, {}
    for half, out in HALVES.items():
        more = {"evaluate": folder / "capt"} if half == "new" else {}
        place.call(ROOT, "train.py", *place.flags(folder / out, half, *CAPT, **more), *capt_options(place, run))
        record = json.loads((folder / out / "results.json").read_text())
        shares = record["confusion"]["base_accuracy"], record["accuracy"]
        found[half] = (*(round(share * record["num_test"] / 100) for share in shares), record["num_test"])
    return found


def capt_life(place, run):
    """Behind :func:`capt_runs`: whether it resumes, and {half: (same by capt.load, same by capt predict, of)}."""
    folder = place.out / run.trainer
    words = place.flags("", "base", *CAPT)
    at = words.index("--output-dir")
    argv = [*words[:at], *words[at + 2 :], *capt_options(place, run)]
    halves = {half: base_life.served(place, folder / "capt", folder / out) for half, out in HALVES.items()}
    return base_life.resumes(place, folder, argv), halves


COLUMNS = ("method", "classes", "host's own test", "base model here", "CAPT", "resumes", "capt.load", "capt predict")


def main(copies, data, clip, side, out, *methods):
    """A Markdown table, two rows a method."""
    place = Place(Path(copies), Path(data), Path(clip), int(side), Path(out).resolve())
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|--:|--:|--:|---|--:|--:|", flush=True)
    for method in methods or RUNS:
        run = RUNS[method]
        theirs, ours = host_runs(place, run), capt_runs(place, run)
        same, halves = capt_life(place, run)
        for half, (right, of) in theirs.items():
            base, capt, ours_of = ours[half]
            cells = [method, half, f"{right} of {of}", f"{base} of {ours_of}", f"{capt} of {ours_of}"]
            cells += [("same files" if same else "other files") if half == "base" else ""]
            cells += [f"{count} of {halves[half][-1]}" for count in halves[half][:2]]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
