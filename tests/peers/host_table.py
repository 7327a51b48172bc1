"""The table host x (drop in, train, new classes, parse, undo) of docs/DROP_IN.md, over copies of the repositories.

    python tests/peers/host_table.py PEERS --data DATA --clip CLIP.pt --out FOLDER            # all hosts of HOSTS
    python tests/peers/host_table.py PEERS --data DATA --clip CLIP.pt --out FOLDER MaPLe TCP  # these
    python tests/peers/host_table.py PEERS --out FOLDER --print                               # the table so far

PEERS holds the copies, called <owner>+<name>; DATA holds caltech-101, and tiny-imagenet where a host reads ImageNet
alone, whose place 20 of its classes take. Each host is copied, the plugin is dropped in,
its own train.py trains CAPT (2 shots, 1 epoch) and tests the new classes (every fourth image), its parser reads the
logs, and the plugin is taken out. One JSON file a host, so that a table can be made in parts. What this Python lacks of
a host's own packages may lie in a folder that --packages names.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import hosts

UPSTREAM = hosts.DASSL
SPLIT, TEST_EVERY = "split_zhou_Caltech101.json", 4  # every fourth test image, for the sake of time


@dataclass(frozen=True)
class Peer:
    """A host: its copy, the folder of its train.py in there, the Dassl it is meant for, and what it wants besides."""

    copy: str
    folder: str = ""
    dassl: str = UPSTREAM
    more: tuple = ()  # arguments without which its own train.py goes no further
    no_data: str = ""  # why nothing is trained there, where no data that the host reads are here
    dataset: str = "caltech101"  # or imagenet
    epochs: int = 1  # that its own train.py trains for 2 shots, whatever is asked

    @property
    def remark(self):
        """What its figures are of, where that is not Caltech101 and one epoch."""
        data = "it reads ImageNet alone; 20 classes of Tiny-ImageNet" if self.dataset == "imagenet" else ""
        return data or (f"its train.py sets {self.epochs} epochs, as in our run" if self.epochs > 1 else "")

    @property
    def ours(self):
        """Folder of this repository's run of the same data and epochs."""
        return "ours" if (self.dataset, self.epochs) == ("caltech101", 1) else f"ours_{self.dataset}_{self.epochs}"


HOSTS = {
    "CoOp": Peer("KaiyangZhou+CoOp"),
    "MaPLe": Peer("muzairkhattak+multimodal-prompt-learning"),
    "PromptSRC": Peer("muzairkhattak+PromptSRC"),
    "PromptKD": Peer("zhengli97+PromptKD", dassl="zhengli97+PromptKD/Dassl.pytorch"),
    "KgCoOp": Peer("htyao89+KgCoOp", dassl="htyao89+KgCoOp/Dassl.ProGrad.pytorch"),
    "ProGrad": Peer("BeierZhu+Prompt-align", dassl="BeierZhu+Prompt-align/Dassl.ProGrad.pytorch"),
    "TCP": Peer("htyao89+Textual-based_Class-aware_prompt_tuning"),
    "ATPrompt": Peer("zhengli97+ATPrompt", dassl="zhengli97+ATPrompt/Dassl.pytorch"),
    "ProText": Peer("muzairkhattak+ProText", dassl="muzairkhattak+ProText/Dassl.pytorch"),
    "TextRefiner": Peer("xjjxmu+TextRefiner", "."),
    "PLOT (plot-coop)": Peer("CHENGY12+PLOT", "plot-coop", epochs=100),
    "PLOT (plot-pp)": Peer("CHENGY12+PLOT", "plot-pp", epochs=100),
    "LoCoOp": Peer("AtsuMiyai+LoCoOp", dataset="imagenet"),
    "LASP": Peer("1adrianb+lasp"),
    "CoPrompt": Peer("ShuvenduRoy+CoPrompt"),
    "MMA": Peer("ZjjConan+Multi-Modal-Adapter"),
    "MMA (VLM-MultiModalAdapter)": Peer("ZjjConan+VLM-MultiModalAdapter"),
    "EricTan7/CAPT": Peer("EricTan7+CAPT"),
    "DePT": Peer("Koorye+DePT"),
    "SkipTuning": Peer("Koorye+SkipTuning"),
    "ProMetaR": Peer("mlvlab+ProMetaR"),
    "SpecPL": Peer("Mlrac1e+SpecPL-Prompt-Learning", "."),
    "MMRL": Peer("yunncheng+MMRL", more=("TASK", "B2N")),
    "FVG-PT": Peer("JREion+FVG-PT", dassl="JREion+FVG-PT/Dassl.pytorch"),
    "DPC": Peer("JREion+DPC", dassl="JREion+DPC/Dassl.pytorch"),
    "CAPT, as published": Peer("greatest-gourmet+CAPT", dassl="greatest-gourmet+CAPT/Dassl.pytorch"),
    "PromptAlign": Peer("jameelhassan+PromptAlign"),
    "LightRA": Peer("longinhit+LightRA"),
    "BiomedCoOp": Peer(
        "HealthX-Lab+BiomedCoOp",
        dassl="HealthX-Lab+BiomedCoOp/Dassl.pytorch",
        no_data="its data sets are medical, and none of them is here",
    ),
    "baple": Peer(
        "asif-hanif+baple",
        dassl="asif-hanif+baple/Dassl.pytorch",
        no_data="its data sets are medical, and none of them is here",
    ),
}
STEPS = ("drop in", "train", "new classes", "parse", "undo")


def run_host(name, peers, files, packages):
    """A row of the table: step -> what came of it."""
    peer, row = HOSTS[name], dict.fromkeys(STEPS, "")
    shutil.rmtree(files / "host", ignore_errors=True)
    copy = hosts.copy_host(peers, peer.copy, files / "host")
    before, path = hosts.digest(copy), _python_path(peers / peer.dassl, packages)
    root = copy / peer.folder if peer.folder else copy
    try:
        done = _python(hosts.ROOT, path, "scripts/drop_in.py", root)
        if done.returncode:
            row["drop in"] = _last_line(done.stderr)
            return row
        obstacle = re.search(r"does not come to train it: (.*)", done.stdout)
        row["drop in"] = "yes"
        root, entry = re.search(r"(\S+): CAPT is there(?:;|, but) (?:run its )?(\S+\.py)", done.stdout).groups()
        row["remark"] = obstacle[1] if obstacle else ""
        if peer.no_data or (obstacle and not peer.more):
            row["remark"] = row["remark"] or f"comes to trainer.train(); {peer.no_data}"
        else:
            row |= _train_and_test(Path(root), entry, path, files, peer)
            row["remark"] = row["remark"] or peer.remark
    finally:
        undone = _python(hosts.ROOT, path, "scripts/drop_in.py", copy / peer.folder, "--undo")
        same = hosts.digest(copy) == before
        row["undo"] = (
            "byte for byte" if same and undone.returncode == 0 else f"not as it was; {_last_line(undone.stdout)}"
        )
    return row


def _train_and_test(root, entry, path, files, peer, out="theirs"):
    """Train on the base classes, test on the new ones, and hold both against this repository's own run."""
    shutil.rmtree(files / out, ignore_errors=True)
    for drawn in (files / "data").glob("*/split_fewshot"):  # ImageNet's list of files stays: it has no order of its own
        shutil.rmtree(drawn)
    found = {}
    for step, subsample, folder in (("train", "base", "train"), ("new classes", "new", "test/seed1")):
        argv = ["--root", files / "data", "--seed", 1, "--trainer", "CAPT", "--output-dir", files / out / folder]
        argv += ["--dataset-config-file", f"configs/datasets/{peer.dataset}.yaml", "--backbone", files / "clip.pt"]
        argv += ["--config-file", "configs/trainers/CAPT/vit_b16_ep20.yaml"]
        if step != "train":
            argv += ["--model-dir", files / out / "train", "--load-epoch", peer.epochs, "--eval-only"]
        argv += [*peer.more, "INPUT.SIZE", "(48, 48)", "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", 0]
        argv += ["DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", subsample]
        argv += ["OPTIM.MAX_EPOCH", peer.epochs, "OPTIM.WARMUP_CONS_LR", 0.002]
        start = time.time()
        done = _python(root, path, entry, *argv)
        results = files / out / folder / "results.json"
        if not results.is_file():
            found[step] = "no"
            found["remark"] = _last_line(done.stderr or done.stdout)
            return found
        accuracy = json.loads(results.read_text())["accuracy"]
        found[step] = f"{accuracy:.2f}{_beside_ours(files, out, folder, peer)}"
        found["remark"] = "" if done.returncode == 0 else f"exit code {done.returncode}: {_last_line(done.stderr)}"
        found[f"seconds, {step}"] = round(time.time() - start)
    found["parse"] = _parse(root, path, files / out / "test")
    return found


def _beside_ours(files, out, folder, peer):
    """Nothing where the predictions are this repository's, image by image; else how many differ."""
    if out == peer.ours:
        return ""
    ours, theirs = (np.load(files / name / folder / "predictions.npz") for name in (peer.ours, out))
    if list(ours["impaths"]) != list(theirs["impaths"]):
        return " (other images)"
    num = int((ours["predictions"] != theirs["predictions"]).sum())
    return f" ({num} of {len(ours['predictions'])} predictions differ)" if num else " ="


def _parse(root, path, folder):
    if not (root / "parse_test_res.py").is_file():
        return "it has none"
    done = _python(root, path, "parse_test_res.py", folder, "--test-log")
    accuracy = re.search(r"accuracy: ([\d.]+)%", done.stdout)
    return f"{accuracy[1]}" if accuracy else f"no: {_last_line(done.stderr or done.stdout)}"


def _python_path(dassl, packages):
    return os.pathsep.join(str(path.resolve()) for path in (dassl, packages) if path)


def _python(folder, path, script, *arguments):
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def _last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("  ")]
    return lines[-1].strip() if lines else "no word"


def lay_out(data, clip, files, peers):
    """Data that may be written beside, and the CLIP; our own runs to hold the others against."""
    target = files / "data" / "caltech-101"
    if not target.is_dir():
        target.mkdir(parents=True)
        (target / "101_ObjectCategories").symlink_to((data / "caltech-101" / "101_ObjectCategories").resolve())
        split = json.loads((data / "caltech-101" / SPLIT).read_text())
        split["test"] = split["test"][::TEST_EVERY]
        (target / SPLIT).write_text(json.dumps(split))
        shutil.copy(clip, files / "clip.pt")
    if any(peer.dataset == "imagenet" for peer in peers) and not (files / "data" / "imagenet").is_dir():
        _lay_out_imagenet(data / "tiny-imagenet", files / "data" / "imagenet")
    for peer in {peer.ours: peer for peer in peers if not peer.no_data}.values():
        if not (files / peer.ours / "test" / "seed1" / "results.json").is_file():
            own = Peer("", dataset=peer.dataset, epochs=peer.epochs)
            print("this repository:", _train_and_test(hosts.ROOT, "train.py", "", files, own, peer.ours), flush=True)


def _lay_out_imagenet(tiny, target):
    """ImageNet's layout: of each of 20 classes 10 images to train on and 10 to test on."""
    with tarfile.open(tiny / "train.tar") as archive:
        files = sorted((member for member in archive if member.isfile()), key=lambda member: member.name)
        folders = sorted({Path(member.name).parts[-2] for member in files})[:20]
        for folder in folders:
            images = [member for member in files if Path(member.name).parts[-2] == folder]
            for number, member in enumerate(images[:20]):
                place = target / "images" / ("train" if number < 10 else "val") / folder / Path(member.name).name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.extractfile(member).read())
    shutil.copyfile(tiny / "classnames.txt", target / "classnames.txt")


def table(rows):
    """Markdown, in the order of ``HOSTS``."""
    lines = ["| host | " + " | ".join(STEPS) + " | remark |", "|---|---|--:|--:|--:|---|---|"]
    for name in HOSTS:
        if name in rows:
            remark = re.sub(r" \(/[^)]*\)|(?<![\w.])/\S*/", "", rows[name].get("remark", ""))  # no paths
            cells = [rows[name].get(step) or "" for step in STEPS] + [remark]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path)
    parser.add_argument("names", nargs="*", help="hosts of HOSTS; none: all")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packages", type=Path, help="folder of packages that hosts import and this Python lacks")
    parser.add_argument("--print", action="store_true", dest="only_print", help="run nothing")
    args = parser.parse_intermixed_args()
    rows = args.out / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    if not args.only_print:
        lay_out(args.data, args.clip, args.out, [HOSTS[name] for name in args.names or HOSTS])
        for name in args.names or HOSTS:
            if not (args.peers / HOSTS[name].copy).is_dir():
                print(f"{name}: no {args.peers / HOSTS[name].copy}", flush=True)
                continue
            row = run_host(name, args.peers.resolve(), args.out.resolve(), args.packages)
            (rows / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.json").write_text(json.dumps({"name": name, **row}))
            print(f"{name}: {row}", flush=True)
    stored = [json.loads(path.read_text()) for path in sorted(rows.glob("*.json"))]
    print(table({row["name"]: row for row in stored}))


if __name__ == "__main__":
    main()
