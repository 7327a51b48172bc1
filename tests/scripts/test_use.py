"""From a folder of images to a run, and what is done with it: load, predict, report, features; without Dassl."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "capt"))

import tiny_capt  # noqa: E402

pytestmark = pytest.mark.slow  # a dozen processes that import torch

CLASSES = ["cup", "jug", "vase", "red_fox"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def python(*command, cwd, status=0, **env):
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env={**ENV, **env}, capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stdout[-2000:] + result.stderr
    return result


# train.py as it is, but the logits of the test that ends the run are kept
TRAIN_AND_KEEP_LOGITS = """
import sys
sys.path.insert(0, {root!r})
import train
import numpy as np, torch
from trainers.capt import CAPT
kept = []
def keeping(inference):
    def keep(self, images_or_features):
        logits, base_logits = inference(self, images_or_features)
        kept.append(torch.stack([logits, base_logits]).float().cpu())
        return logits, base_logits
    return keep
CAPT.inference, CAPT.inference_from = keeping(CAPT.inference), keeping(CAPT.inference_from)
assert train.main(sys.argv[1:]) == 0
np.savez("{run}_logits.npz", **dict(zip(("logits", "base_logits"), torch.cat(kept, dim=1).numpy(), strict=True)))
"""


def train_command(trainer, config, run, *options):
    files = ["--dataset-config-file", ROOT / "configs/datasets/folder.yaml"]
    files += ["--config-file", ROOT / f"configs/trainers/{trainer}/{config}.yaml"]
    flags = ["--root", "photos", "--seed", 1, "--trainer", trainer, "--backbone", "clip.pt", "--output-dir", run]
    quick = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 4]
    return [*files, *flags, *quick, *options]


def train_capt(folder, run, *options):
    """Train CAPT into ``folder/run``; the logits of its test go to ``<run>_logits.npz``."""
    code = TRAIN_AND_KEEP_LOGITS.format(root=str(ROOT), run=run)
    python("-c", code, *train_command("CAPT", "vit_b16_ep20", run, "TRAINER.CAPT.PREC", "fp32", *options), cwd=folder)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of pictures, a small CLIP, and a CAPT trained on them for one epoch."""
    folder = tmp_path_factory.mktemp("own")
    tiny_capt.draw_pictures(folder / "photos", CLASSES, 10)
    torch.save(tiny_capt.clip_state(), folder / "clip.pt")
    (folder / "photos" / "template.txt").write_text("a drawing of a {}.")
    train_capt(folder, "run")
    return folder


LOAD = """
import sys
sys.path.insert(0, {trainers!r})
import capt
run = capt.load("run")
import numpy as np
found, told = np.load("run/predictions.npz"), np.load("run_logits.npz")
paths = ["photos/" + path for path in found["impaths"]]
assert told["logits"].shape == found["probs"].shape and np.ptp(told["logits"]) > 0.1
own = [(output.logits.numpy(), output.base_logits.numpy()) for _, output in run.batches(paths, batch_size=100)]
logits, base_logits = (np.concatenate(part) for part in zip(*own))
for mine, kept in ((logits, told["logits"]), (base_logits, told["base_logits"])):
    assert np.abs(mine - kept).max() <= 1e-6, np.abs(mine - kept).max()
assert np.array_equal(run.logits(paths).numpy(), logits)
other = run.predict(paths[:2], class_names=["cup", "zebra", "sea view"], top_k=2)
assert [len(p.class_names) for p in other] == [2, 2] and set(other[0].class_names) <= {{"cup", "zebra", "sea view"}}
again = run.predict(paths[0])[0]  # back to the run's own classes
assert abs(again.confidences[0] - found["probs"][0].max()) <= 1e-6
assert run.bank is not None and run.classnames == {classes!r}
assert not [name for name in sys.modules if name.split(".")[0] == "dassl"]
"""


def test_load_gives_the_trainers_logits_and_never_imports_dassl(own):
    """Of the test that ended the training, in another process, to 1e-6; so do the probabilities that the run keeps."""
    code = LOAD.format(trainers=str(ROOT / "trainers"), classes=sorted(CLASSES))
    python("-c", code, cwd=own)
    kept, found = np.load(own / "run_logits.npz"), np.load(own / "run/predictions.npz")
    for logits, probs in (("logits", "probs"), ("base_logits", "base_probs")):
        np.testing.assert_allclose(torch.from_numpy(kept[logits]).softmax(-1), found[probs], atol=1e-6)


@pytest.mark.parametrize("base", ["CoOp", "MaPLe"])
def test_load_gives_the_trainers_logits_on_a_learned_base(own, base, tmp_path):
    shutil.copytree(own / "photos", tmp_path / "photos")
    shutil.copyfile(own / "clip.pt", tmp_path / "clip.pt")
    python(ROOT / "train.py", *train_command(base, "demo", "base"), cwd=tmp_path)
    train_capt(tmp_path, "run", "TRAINER.CAPT.BASE.NAME", base, "TRAINER.CAPT.BASE.DIR", "base")
    assert json.loads((tmp_path / "run/results.json").read_text())["base"] == base
    python("-c", LOAD.format(trainers=str(ROOT / "trainers"), classes=sorted(CLASSES)), cwd=tmp_path)


def test_a_moved_run_is_loaded_from_anywhere(own, tmp_path):
    code = LOAD.format(trainers=str(ROOT / "trainers"), classes=sorted(CLASSES))
    shutil.copytree(own, tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    code = code.replace('"run', f'"{tmp_path}/moved/run').replace('"photos/', f'"{tmp_path}/moved/photos/')
    python("-c", code, cwd=tmp_path / "elsewhere")


ORDERS = [
    "import compat, dassl.engine, trainers.capt",
    "import compat, trainers.capt, dassl.engine",
    "import compat, trainers",
    "import train",
    "sys.path.insert(0, 'trainers'); import compat, capt, dassl.engine",
    "sys.path.insert(0, 'trainers'); import compat, dassl.engine, capt",
    "sys.path.insert(0, 'trainers'); import capt, compat, dassl.engine",
    "sys.path.insert(0, 'trainers'); import capt, compat; capt.CAPT",
    "sys.path.insert(0, 'trainers'); import capt, compat, trainers",
]


@pytest.mark.parametrize("order", ORDERS)
def test_importing_registers_in_every_order(order):
    check = "from dassl.engine import TRAINER_REGISTRY; assert 'CAPT' in TRAINER_REGISTRY.registered_names()"
    python("-c", f"import sys; {order}; {check}", cwd=ROOT, PYTHONPATH=str(ROOT))


def test_what_is_missing_is_said_in_one_line(own, tmp_path):
    from trainers.capt import load

    with pytest.raises(FileNotFoundError, match=r'No ".*nowhere/results.json": no such folder; give the output folder'):
        load(tmp_path / "nowhere")
    shutil.copytree(own / "run", tmp_path / "run")
    record = json.loads((own / "run/results.json").read_text())
    record["config"]["TRAINER"]["CAPT"]["BASE"] |= {"NAME": "CoOp", "DIR": "gone/coop"}
    record["config"]["MODEL"]["BACKBONE"]["NAME"] = str(own / "clip.pt")
    (tmp_path / "run/results.json").write_text(json.dumps(record))
    with pytest.raises(FileNotFoundError, match='CoOp in "gone/coop", is not there; put the folder back'):
        load(tmp_path / "run")
    record["trainer"] = "CoOp"
    (tmp_path / "run/results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"was written by CoOp; capt.load needs the run of a CAPT"):
        load(tmp_path / "run")


def test_run_of_another_version_is_refused_in_one_line(own, tmp_path):
    from trainers.capt import load

    shutil.copytree(own / "run", tmp_path / "run")
    record = json.loads((own / "run/results.json").read_text())
    record["config"]["MODEL"]["BACKBONE"]["NAME"] = str(own / "clip.pt")
    del record["config"]["TRAINER"]["CAPT"]["SAM"]["BY_LABEL"]
    (tmp_path / "run/results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"trained by another version of CAPT .*BY_LABEL.*; train it again"):
        load(tmp_path / "run")


def test_predict_agrees_with_the_runs_own_test(own):
    found = np.load(own / "run/predictions.npz")
    images = [f"photos/{path}" for path in found["impaths"]]
    script = ROOT / "scripts/predict.py"
    lines = python(script, "--run", "run", "--format", "jsonl", *images, cwd=own).stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert [line["image"] for line in told] == images
    names = sorted(CLASSES)
    assert [line["top"][0]["class"] for line in told] == [names[p] for p in found["predictions"]]
    assert [line["base_top"][0]["class"] for line in told] == [names[p] for p in found["base_predictions"]]
    assert [line["changed"] for line in told] == (found["predictions"] != found["base_predictions"]).tolist()


def test_predict_explains_and_names_what_it_cannot_read(own):
    (own / "broken.jpg").write_bytes(b"no image")
    script, image = ROOT / "scripts/predict.py", next((own / "photos/cup").glob("*.png"))
    result = python(script, "--run", "run", "--explain", image, "broken.jpg", cwd=own, status=1)
    assert '"broken.jpg" cannot be read as an image' in result.stderr
    assert "score" in result.stdout
    assert "tells apart (template): a photo of a" in result.stdout
    assert "training image" in result.stdout
    line = python(script, "--run", "run", "--explain", "--format", "jsonl", image, cwd=own).stdout
    command = ("-m", "capt_tools", "explain", "--run", "run", "--format", "jsonl", image)
    assert python(*command, cwd=own, PYTHONPATH=str(ROOT)).stdout == line
    told = json.loads(line)
    scores = [pair["score"] for pair in told["pairs"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3  # C - 1 of the five asked for
    assert told["representatives"]
    assert all((own / "photos" / sample["path"]).is_file() for sample in told["representatives"])
    error = python(script, "--run", "run", "missing.jpg", cwd=own, status=2).stderr
    assert error.splitlines()[-1] == "error: no file missing.jpg"


def test_features_before_and_after(own):
    python(ROOT / "scripts/export_features.py", "--run", "run", "--output", "features", cwd=own)
    arrays, found = np.load(own / "features/features.npz"), np.load(own / "run/predictions.npz")
    assert (own / "features/tsne.png").stat().st_size > 5000
    assert arrays["paths"].tolist() == found["impaths"].tolist()
    np.testing.assert_allclose(np.linalg.norm(arrays["after"], axis=1), 1, atol=1e-5)
    for part, predictions in (("before", "base_predictions"), ("after", "predictions")):
        assert ((arrays[part] @ arrays["text_features"].T).argmax(1) == found[predictions]).all()


def test_umap_where_it_is_installed(own):
    installed = importlib.util.find_spec("umap") is not None
    command = (ROOT / "scripts/export_features.py", "--run", "run", "--output", "umap", "--method", "umap")
    result = python(*command, cwd=own, status=0 if installed else 2)
    assert (own / "umap/features.npz").is_file()
    if installed:
        assert (own / "umap/umap.png").stat().st_size > 5000
    else:
        told = "error: umap is missing; pip install '.[report]' umap-learn, or leave --method at tsne"
        assert result.stderr.splitlines()[-1] == told


def test_report_of_the_run_holds_representatives_and_texts(own):
    python(ROOT / "scripts/confusion_report.py", "run", "--output", "report", cwd=own)
    page = (own / "report/report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    run = data["runs"][0]
    assert run["note"] == ""
    assert run["used"]
    assert run["texts"]
    assert sum(map(len, run["filed"].values())) > 0
    assert data["thumbnails"]
