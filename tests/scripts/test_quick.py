"""``scripts/capt/quick.sh`` on a folder of photographs with what such folders have: damaged files, a tiny class."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow  # two runs on photographs

# Caltech101's folders, and what their user calls them
CLASSES = {
    "airplanes": "Jets",
    "car_side": "cars from the side",
    "Motorbikes": "bikes",
    "crab": "Krabbe",
    "lobster": "Hummer",
    "ketch": "two_masts",
    "schooner": "more_masts",
    "watch": "Uhren",
    "sunflower": "sun-flower",
    "stop_sign": "signs (stop)",
}
TINY, DAMAGED = "signs (stop)", {"Krabbe/torn.jpg", "Jets/no photograph.jpg"}
PER_CLASS = 24


def make_folder(source, folder):
    """The first images of each class under its new name, three of one, and two files that cannot be read."""
    for name, own in CLASSES.items():
        images = sorted((source / name).glob("*.jpg"))[: 3 if own == TINY else PER_CLASS]
        (folder / own).mkdir(parents=True)
        for image in images:
            shutil.copyfile(image, folder / own / image.name)
    whole = (source / "crab" / "image_0030.jpg").read_bytes()
    (folder / "Krabbe/torn.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "Jets/no photograph.jpg").write_bytes(b"<html>404</html>")


def start(*command, status=0, **env):
    left_out = ("OPTS", "BASE", "BASE_DIR", "VARIANT", "CFG", "SHOTS", "LOADEP", "DRY_RUN", "SEEDS", "DATA")
    kept = {key: value for key, value in os.environ.items() if key not in left_out}
    env = {**kept, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **{k: str(v) for k, v in env.items()}}
    result = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-2000:]
    return result


@pytest.fixture(scope="module")
def quick(tmp_path_factory, shared_data):
    """Folder of photographs, the output folder of ``quick.sh`` on it, and what it printed."""
    folder = tmp_path_factory.mktemp("quick")
    photos, output = folder / "my photos", folder / "my runs"
    make_folder(shared_data / "caltech-101/101_ObjectCategories", photos)
    backbone = {"BACKBONE": shared_data / "clip/small_vit48.pt", "SIZE": "(48, 48)"}
    environment = {**backbone, "EPOCHS": 2, "OUTPUT": output}
    printed = start("bash", "scripts/capt/quick.sh", photos, 8, **environment).stdout
    return photos, output, printed


def run_of(output):
    return output / "folder/CAPT/vit_b16_ep20_on_ZeroshotCLIP_8shots/seed1"


def test_it_ends_well_and_names_what_it_left_out(quick):
    photos, output, printed = quick
    left_out = [line for line in printed.splitlines() if line.startswith("Left out, cannot be read: ")]
    assert {line.removeprefix("Left out, cannot be read: ").split(" (")[0] for line in left_out} == DAMAGED
    record = json.loads((run_of(output) / "results.json").read_text())
    assert sorted(record["classnames"]) == sorted(CLASSES.values())
    assert record["num_classes"] == 10
    sample = json.loads((run_of(output) / "sample.json").read_text())
    sizes = {name: len(paths) for name, paths in sample["train_x"].items()}
    assert sizes[TINY] == 1  # taken whole: of three images one is for testing, one for validation
    assert {size for name, size in sizes.items() if name != TINY} == {8}
    assert record["num_train"] == 9 * 8 + 1
    assert record["num_test"] == 9 * 7 + 1
    assert "1 of 10 classes have fewer than 8 training images and are taken whole" in printed
    for text in ("ZeroshotCLIP", "CAPT", f"Report: {output}/report/report.html", "Predict: "):
        assert text in printed


def test_predict_on_unseen_images_gives_the_accuracy_of_the_test(quick, tmp_path):
    photos, output, _ = quick
    run = run_of(output)
    record, found = json.loads((run / "results.json").read_text()), np.load(run / "predictions.npz")
    sample = json.loads((run / "sample.json").read_text())
    seen = {path for part in ("train_x", "val") for paths in sample[part].values() for path in paths}
    assert not seen & set(found["impaths"].tolist())
    for place, path in enumerate(found["impaths"]):  # as strangers: elsewhere, without a class in their names
        shutil.copyfile(photos / path, tmp_path / f"{place:03d}.jpg")
    lines = start(sys.executable, "scripts/predict.py", "--run", run, "--format", "jsonl", tmp_path).stdout.splitlines()
    answers = [json.loads(line)["top"][0]["class"] for line in lines]
    labels = [record["classnames"][label] for label in found["labels"]]
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    assert 100 * right / record["num_test"] == pytest.approx(record["accuracy"], abs=1e-9)
    assert answers == [record["classnames"][p] for p in found["predictions"]]
    assert record["accuracy"] > 15  # ten classes: not chance


def test_the_report_shows_the_photographs(quick):
    _, output, _ = quick
    from report_runs import page_data

    data = page_data((output / "report/report.html").read_text(encoding="utf-8"))
    assert data["runs"][0]["used"]
    assert all(image[-1] >= 0 for image in data["runs"][0]["images"])
    assert "signs (stop)" in data["runs"][0]["classes"]


def test_again_and_for_another_folder(quick, tmp_path, shared_data):
    photos, output, _ = quick
    backbone = {"BACKBONE": shared_data / "clip/small_vit48.pt", "SIZE": "(48, 48)", "EPOCHS": 2}
    again = start("bash", "scripts/capt/quick.sh", photos, 8, OUTPUT=output, **backbone).stdout
    assert again.count("(skip)") == 2
    other = start("bash", "scripts/capt/quick.sh", tmp_path, 8, OUTPUT=output, status=2, **backbone)
    assert other.stderr == f"error: {output} holds the runs of {photos}; set OUTPUT to another folder\n"
