"""CAPT without experts, its default: nothing is trained by gradients, and a run ends with what was chosen."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "capt"))

from test_capt_end_to_end import _registered, build, equal, files, finished, read, weights  # noqa: E402, F401

import trainers.capt as capt  # noqa: E402

CHOSEN = ("TRAINER.CAPT.MGDE.BETA", 0.0)


def contents(folder):
    """Every file's bytes by its path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def chosen(files):  # noqa: F811
    """A run at the default strength of the experts, none, and what it printed."""
    trainer = build(files, files / "chosen", *CHOSEN)
    trainer.train()
    return trainer


def test_it_leaves_what_a_run_of_all_its_epochs_leaves(chosen):
    out = Path(chosen.output_dir)
    assert not list(chosen.model.refiner.parameters())
    assert (out / "capt" / "model.pth.tar-2").is_file()  # OPTIM.MAX_EPOCH 2: where scripts look for it
    assert (out / "capt" / "checkpoint").read_text().strip() == "model.pth.tar-2"
    assert not list((out / "capt").glob("*.bank.safetensors"))  # there is no adapter to make confusion features
    assert not (out / "resume").exists()
    results, arrays = read(out)
    assert results["choices"].keys() == {"shift", "gain"}
    assert len(arrays["labels"]) == 12


def test_it_says_so(files, tmp_path, capsys):  # noqa: F811
    build(files, tmp_path, *CHOSEN).train()
    printed = capsys.readouterr().out
    assert "# trained params: 0 of" in printed
    assert "Nothing is trained by gradients (TRAINER.CAPT.MGDE.BETA 0)" in printed
    assert "epoch [" not in printed


@torch.no_grad()
def test_it_is_served_as_it_was_tested(chosen, files, tmp_path):  # noqa: F811
    _, arrays = read(Path(chosen.output_dir))
    trainer = build(files, tmp_path, *CHOSEN)
    trainer.load_model(chosen.output_dir, epoch=2)
    trainer.test()
    again = read(tmp_path)[1]
    assert torch.equal(torch.from_numpy(again["probs"]), torch.from_numpy(arrays["probs"]))
    paths = [item.impath for item in chosen.dm.dataset.test]
    ((_, output),) = capt.load(chosen.output_dir).batches(paths)
    found = output.logits.softmax(dim=-1)
    torch.testing.assert_close(found, torch.from_numpy(arrays["probs"]).to(found), rtol=1e-4, atol=1e-5)


def test_the_same_command_again_changes_no_byte(chosen, files):  # noqa: F811
    out = Path(chosen.output_dir)
    before = contents(out / "capt")
    bank = (out / "confusion_bank.safetensors").read_bytes()
    build(files, out, *CHOSEN, "RESUME", str(out)).train()
    after = contents(out / "capt")
    assert [path for path in before | after if before.get(path) != after.get(path)] == []
    assert (out / "confusion_bank.safetensors").read_bytes() == bank


def test_the_best_epoch_is_what_was_chosen(files, tmp_path):  # noqa: F811
    trainer = build(files, tmp_path, *CHOSEN, "TEST.FINAL_MODEL", "best_val")
    trainer.train()
    assert (tmp_path / "capt" / "model-best.pth.tar").is_file()
    assert json.loads((tmp_path / "results.json").read_text())["accuracy"] == trainer.test()


@torch.no_grad()
def test_experts_of_no_strength_answer_as_none(files, finished, chosen):  # noqa: F811
    """What a strength of 0 leaves out changes no answer: the trained run's answers but for its residual."""
    model = finished.trainer.model.eval()
    images = torch.stack([chosen.dm.test_loader.dataset[i]["img"] for i in range(12)])
    before, model.refiner.expert.beta = model.refiner.expert.beta, 0.0
    try:
        trained, _ = finished.trainer.inference(images)
    finally:
        model.refiner.expert.beta = before
    alone, _ = chosen.inference(images)
    torch.testing.assert_close(trained, alone, rtol=1e-5, atol=1e-5)


# Runs from before that was the default


def test_a_checkpoint_with_experts_says_what_to_give(files, finished, tmp_path):  # noqa: F811
    trainer = build(files, tmp_path, *CHOSEN)
    with pytest.raises(ValueError, match=r"holds experts: give MGDE.BETA 0.1, the default once") as caught:
        trainer.load_model(str(finished.out), epoch=2)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_no_expert_reads_is_left_aside(files, finished, chosen, tmp_path):  # noqa: F811
    """MGDE.ON False once trained an adapter all the same, and stored it."""
    run = tmp_path / "run"
    shutil.copytree(chosen.output_dir, run)
    path = run / "capt" / "model.pth.tar-2"
    checkpoint = torch.load(path, weights_only=True)
    adapter = {name: value for name, value in weights(finished.trainer).items() if name.startswith("adapter.")}
    assert adapter
    checkpoint["state_dict"] |= adapter
    torch.save(checkpoint, path)
    trainer = build(files, tmp_path / "eval", *CHOSEN)
    trainer.load_model(str(run), epoch=2)
    assert equal(weights(trainer), weights(chosen))


def test_its_bank_holds_no_patch_tokens(chosen, files, tmp_path):  # noqa: F811
    """They are the largest part of it, and experts alone read them; also where they would not lie in the cache."""
    assert not chosen.model.bank.has_tokens
    trainer = build(files, tmp_path, *CHOSEN, "TRAINER.CAPT.CACHE.VIEWS", 0)
    trainer.train()
    assert not trainer.model.bank.has_tokens
    assert trainer.model.bank.entries.layout.shape[1] > 0
