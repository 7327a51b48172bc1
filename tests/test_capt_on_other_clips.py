"""CAPT on CLIPs that are not OpenAI's: trains, is tested on new classes, is served by capt.load; exit 2."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_capt_end_to_end import CLASSES, _registered, build, files, main, one_line, read  # noqa: F401 - fixtures

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import foreign_clips as foreign  # noqa: E402
import tiny  # noqa: E402
import tiny_capt  # noqa: E402

from trainers import capt  # noqa: E402

pytest.importorskip("transformers", reason="the extra `test` brings transformers")
pytest.importorskip("open_clip", reason="the extra `test` brings open_clip")

SHIFT_OFF = ("TRAINER.CAPT.SYS.ON", False)


def openai_resnet(folder):
    torch.save(tiny.resnet_state(), folder / "clip.pt")
    return folder / "clip.pt"


def by_open_clip(folder, config, tokenizer=None):
    return foreign.save_open_clip(foreign.open_clip_model(config), config, folder, tokenizer=tokenizer)


def siglip(folder):
    tokenizer = foreign.siglip_tokenizer(folder)
    return foreign.save_transformers(foreign.siglip(len(tokenizer)), folder, tokenizer)


def siglip2(folder):
    tokenizer = foreign.siglip2_tokenizer()
    return foreign.save_transformers(foreign.siglip(len(tokenizer)), folder, tokenizer)


def siglip_by_open_clip(folder):
    tokenizer = foreign.siglip_tokenizer(folder)
    return by_open_clip(folder, foreign.open_clip_siglip_config(len(tokenizer)), tokenizer)


MAKERS = {
    "transformers": lambda folder: foreign.save_transformers(foreign.transformers_clip(), folder),
    "open_clip": lambda folder: by_open_clip(folder, foreign.open_clip_config(quick_gelu=True)),
    "ResNet": openai_resnet,
    "SigLIP": siglip,
    "SigLIP 2": siglip2,
    "open_clip, SigLIP": siglip_by_open_clip,
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    made = {}

    def path(layout):
        if layout not in made:
            made[layout] = MAKERS[layout](tmp_path_factory.mktemp("backbone"))
        return made[layout]

    return path


def on(path, *more):
    """Options of a run on this backbone, with the normalisation that its file names."""
    stats = getattr(capt.load_clip(str(path)), "pixel_stats", None)
    pixels = () if stats is None else ("INPUT.PIXEL_MEAN", stats[0], "INPUT.PIXEL_STD", stats[1])
    return ("MODEL.BACKBONE.NAME", str(path), "OPTIM.MAX_EPOCH", 1, *pixels, *more)


@pytest.mark.parametrize("layout", MAKERS)
def test_trains_tests_new_classes_and_serves(layout, backbones, files, tmp_path, capsys):  # noqa: F811
    keys = on(backbones(layout), *SHIFT_OFF)
    trainer = build(files, tmp_path / "run", *keys)
    start = {name: value.clone() for name, value in trainer.model.refiner.state_dict().items()}
    trainer.train()
    printed = capsys.readouterr().out
    assert ("No Diff-Manner Adapter" in printed) == (layout == "ResNet")
    moved = {name for name, value in trainer.model.refiner.state_dict().items() if not torch.equal(value, start[name])}
    assert any(name.startswith("expert.") for name in moved)
    assert any(name.startswith("adapter.") for name in moved) == (layout != "ResNet")
    _, arrays = read(tmp_path / "run")
    assert len(trainer.model.bank) > 0
    assert np.abs(arrays["probs"] - arrays["base_probs"]).max() > 1e-4  # the bank speaks, on a ResNet as well

    new = build(files, tmp_path / "new", *keys, "DATASET.SUBSAMPLE_CLASSES", "new")
    new.load_model(str(tmp_path / "run"), epoch=1)
    new.test()
    record, served = read(tmp_path / "new")
    assert record["classnames"] == CLASSES[4:]
    np.testing.assert_array_equal(served["probs"], served["base_probs"])  # the bank knows none of these classes

    run = capt.load(tmp_path / "run", device="cpu")
    paths = [files / "data" / name for name in arrays["impaths"]]
    probs = run.logits(paths).softmax(dim=-1).numpy()
    np.testing.assert_allclose(probs, arrays["probs"], rtol=1e-3, atol=1e-5)
    assert run.predict(paths[:1], class_names=CLASSES[4:])[0].class_name in CLASSES[4:]


def test_an_adapter_can_be_left_out_on_a_vit(backbones, files, tmp_path, capsys):  # noqa: F811
    keys = on(backbones("transformers"), *SHIFT_OFF, "TRAINER.CAPT.SAM.ADAPTER", False)
    trainer = build(files, tmp_path / "run", *keys)
    trainer.train()
    assert "No Diff-Manner Adapter" in capsys.readouterr().out
    assert not list((tmp_path / "run" / "capt").glob("*confusion*"))  # nothing was adapted that could be kept
    _, arrays = read(tmp_path / "run")
    probs = capt.load(tmp_path / "run", device="cpu").logits([files / "data" / name for name in arrays["impaths"]])
    np.testing.assert_allclose(probs.softmax(dim=-1).numpy(), arrays["probs"], rtol=1e-3, atol=1e-5)


def test_a_run_belongs_to_its_activation(backbones, files, tmp_path):  # noqa: F811
    """Two CLIPs of the same weights that differ in what no weight shows are two base models."""
    path = backbones("transformers")
    bases = []
    for activation in ("gelu", "quick_gelu"):
        folder = foreign.save_transformers(foreign.transformers_clip(activation), tmp_path / activation)
        bases.append(tiny_capt.make_base(folder))
    assert all(torch.equal(a, b) for a, b in zip(bases[0].parameters(), bases[1].parameters(), strict=True))
    assert bases[0].digest() != bases[1].digest()
    assert bases[0].digest() == tiny_capt.make_base(path).digest()


@pytest.mark.parametrize("layout", [layout for layout in MAKERS if layout != "ResNet"])
@pytest.mark.parametrize("fault", ["cut", "wrong"])
def test_a_bad_file_ends_with_one_line(layout, fault, backbones, files, tmp_path, capsys):  # noqa: F811
    for path in backbones(layout).iterdir():
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            content = content[: len(content) // 2] if fault == "cut" else b"something else"
        (tmp_path / path.name).write_bytes(content)
    code, lines = main(capsys, files, tmp_path / "run", "MODEL.BACKBONE.NAME", tmp_path)
    assert code == 2
    assert "cannot be read as CLIP weights" in one_line((code, lines))


def test_a_wrong_normalisation_ends_with_one_line(backbones, files, tmp_path, capsys):  # noqa: F811
    line = one_line(main(capsys, files, tmp_path, "MODEL.BACKBONE.NAME", backbones("open_clip")))
    assert "INPUT.PIXEL_MEAN and PIXEL_STD must be" in line
