"""CAPT inside other people's repositories, by their own train.py, on the real Dassl and the current torch.

``CAPT_PEERS`` names a folder with copies, called <owner>+<name> as in ``hosts.HOSTS``.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trainers")]

import hosts  # noqa: E402
import tiny  # noqa: E402

PEERS = Path(os.environ.get("CAPT_PEERS") or "/nowhere")
# Each host on upstream Dassl; one host on the Dassl folders that PromptKD, DPC and CAPT changed and ship.
FORKS = ["zhengli97+PromptKD", "JREion+DPC", "greatest-gourmet+CAPT"]
# Forks of CLIP that return more (TextRefiner, PLOT), trainers elsewhere (LASP), clip.py with pkg_resources (TCP).
UPSTREAM = ["xjjxmu+TextRefiner", "CHENGY12+PLOT/plot-coop", "1adrianb+lasp"]
UPSTREAM += ["htyao89+Textual-based_Class-aware_prompt_tuning"]
PAIRS = [(host, hosts.DASSL) for host in [*hosts.HOSTS, "zhengli97+PromptKD", *UPSTREAM]]
PAIRS += [("muzairkhattak+multimodal-prompt-learning", f"{fork}/Dassl.pytorch") for fork in FORKS]
# Their own: Dassl 0.5.0 in the first two, one folder down; no curves and a train() that ends the process in ATPrompt's.
PAIRS += [("htyao89+KgCoOp", "htyao89+KgCoOp/Dassl.ProGrad.pytorch")]
PAIRS += [("BeierZhu+Prompt-align", "BeierZhu+Prompt-align/Dassl.ProGrad.pytorch")]
PAIRS += [("zhengli97+ATPrompt", "zhengli97+ATPrompt/Dassl.pytorch")]
EPOCHS = {"CHENGY12+PLOT/plot-coop": 100}  # its train.py sets them by the shots, whatever is asked
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("CAPT_PEERS"), reason="CAPT_PEERS names no folder with copies of repositories"
    ),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data and a small CLIP; the split is made once, since its making depends on the order of a folder's files."""
    folder = tmp_path_factory.mktemp("hosts")
    hosts.draw_caltech(folder / "data")
    torch.save(tiny.clip_state(), folder / "clip.pt")
    run(hosts.ROOT, files=folder, out=folder / "ours", dassl=PEERS / hosts.DASSL)
    return folder


def our_run(files, epochs):
    """This repository's run of so many epochs."""
    folder = files / ("ours" if epochs == 2 else f"ours_{epochs}")
    if not folder.is_dir():
        run(hosts.ROOT, files, folder, PEERS / hosts.DASSL, epochs=epochs)
    return folder


def run(repository, files, out, dassl, trainer="CAPT", **more):
    """Train on the base classes and test on the new ones, drawing the shots anew; returns the two logs."""
    shutil.rmtree(files / "data" / "caltech-101" / "split_fewshot", ignore_errors=True)
    parts = files / "data", files / "clip.pt"
    arguments = hosts.flags(*parts, out / "train", trainer, **more)
    trained = hosts.python(repository, "train.py", *arguments, dassl=dassl).stdout
    more |= {"subsample": "new", "evaluate": out / "train"}
    arguments = hosts.flags(*parts, out / "test/seed1", trainer, **more)
    return trained, hosts.python(repository, "train.py", *arguments, dassl=dassl).stdout


def predictions(folder):
    with np.load(folder / "predictions.npz") as stored:
        return {key: stored[key] for key in stored}


@pytest.mark.parametrize(("host", "dassl"), PAIRS, ids=[f"{h.split('+')[1]}-{d.split('+')[1]}" for h, d in PAIRS])
def test_train_test_parse_undo(host, dassl, files, tmp_path):
    if not (PEERS / host).is_dir() or not (PEERS / dassl).is_dir():
        pytest.skip(f"{PEERS} holds no {host} or no {dassl}")
    whole = copy = hosts.copy_host(PEERS, host, tmp_path / "host")
    before = hosts.digest(whole)
    assert hosts.python(hosts.ROOT, "scripts/drop_in.py", copy, "--check", check=False).returncode == 1
    assert hosts.digest(whole) == before
    said = hosts.python(hosts.ROOT, "scripts/drop_in.py", copy, dassl=PEERS / dassl).stdout
    copy = Path(re.search(r"(\S+): CAPT is there; run its train.py", said)[1])  # some keep their code one folder down
    assert "up to date" in hosts.python(hosts.ROOT, "scripts/drop_in.py", copy).stdout

    epochs = EPOCHS.get(host, 2)
    own = our_run(files, epochs)
    trained, tested = run(copy, files, tmp_path / "out", PEERS / dassl, epochs=epochs)
    assert trained.count("Dassl repaired: ") >= 3
    assert re.search(rf"epoch \[{epochs}/{epochs}\]( batch )?\[3/3\]", trained)  # as 0.6 and 0.5 print it
    for part in ("train", "test/seed1"):
        ours, theirs = predictions(own / part), predictions(tmp_path / "out" / part)
        assert list(ours["impaths"]) == list(theirs["impaths"])
        assert (ours["predictions"] == theirs["predictions"]).all()
        np.testing.assert_allclose(ours["probs"], theirs["probs"], rtol=1e-5, atol=1e-6)
        ours, theirs = (json.loads((f / part / "results.json").read_text()) for f in (own, tmp_path / "out"))
        assert ours["accuracy"] == theirs["accuracy"]
    if (copy / "parse_test_res.py").is_file():
        parsed = hosts.python(
            copy, "parse_test_res.py", tmp_path / "out/test", "--test-log", dassl=PEERS / dassl
        ).stdout
        accuracy = re.findall(r"\* accuracy: ([\d.]+)%", tested)[-1]
        assert f"accuracy: {float(accuracy):.2f}%" in parsed

    hosts.python(hosts.ROOT, "scripts/drop_in.py", whole, "--undo")
    assert hosts.digest(whole) == before


STUCK = {  # a host whose train.py cannot train CAPT -> what is said of it
    "yunncheng+MMRL": "train.py line \\d+: ValueError: 'TASK' is not in list",
    "jameelhassan+PromptAlign": "trainers/prompt_align.py line \\d+ imports dassl.utils.tpt_tools",
    "JREion+FVG-PT": "train.py line \\d+ imports trainers.fvgpt_coop, a file that is not in the repository",
    "JREion+DPC": "trainers/zsclip.py line \\d+ imports trainers.imagenet_templates, a file that is not",
    "longinhit+LightRA": "dassl/engine/trainer.py line \\d+ imports dassl.data, a file that is not in the repository",
}


@pytest.mark.parametrize("host", STUCK)
def test_what_is_in_the_way_is_said(host, tmp_path):
    if not (PEERS / host).is_dir() or not (PEERS / hosts.DASSL).is_dir():
        pytest.skip(f"{PEERS} holds no {host} or no {hosts.DASSL}")
    copy = hosts.copy_host(PEERS, host, tmp_path / "host")
    before = hosts.digest(copy)
    own = PEERS / host / "Dassl.pytorch"
    said = hosts.python(
        hosts.ROOT, "scripts/drop_in.py", copy, dassl=own if own.is_dir() else PEERS / hosts.DASSL
    ).stdout
    assert re.search(f"does not come to train it: {STUCK[host]}", said)
    hosts.python(hosts.ROOT, "scripts/drop_in.py", copy, "--undo")
    assert hosts.digest(copy) == before


def test_host_without_dassl_uses_the_bridge(files, tmp_path):
    copy = hosts.copy_host(PEERS, hosts.HOSTS[0], tmp_path / "host")
    hosts.python(hosts.ROOT, "scripts/drop_in.py", copy)
    trained, _ = run(copy, files, tmp_path / "out", dassl=None)
    assert "Dassl repaired" not in trained
    assert (
        predictions(tmp_path / "out/train")["predictions"] == predictions(files / "ours/train")["predictions"]
    ).all()


def test_real_and_bundled_dassl_log_the_same_coop_run(files, tmp_path):
    logs = {}
    for name, dassl in (("real", PEERS / hosts.DASSL), ("bundled", None)):
        # No random transforms: the bundled Dassl draws them from (seed, epoch, image), so that a run can be resumed.
        run(hosts.ROOT, files, tmp_path / name, dassl, trainer="CoOp", transforms="('normalize',)")
        for part in ("train", "test/seed1"):
            text = (tmp_path / name / part / "log.txt").read_text().replace(str(tmp_path / name), "OUT")
            logs[name, part] = _without_times(text)
    for part in ("train", "test/seed1"):
        assert logs["real", part] == logs["bundled", part]
        assert any("accuracy" in line for line in logs["real", part])
    assert sum("lr 1.0000e-03" in line for line in logs["real", "train"]) == 2  # warm-up, all but the last batch


def _without_times(log):
    log = re.sub(r"\*\* System info \*\*\n.*?\n\n", "", log, flags=re.DOTALL)
    log = re.sub(r"(time|data) [\d.]+ \([\d.]+\)|eta \S+|Elapsed: \S+", "", log)
    return [line for line in log.splitlines() if "Dassl repaired" not in line]
