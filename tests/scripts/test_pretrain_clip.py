"""The tool that trains a small CLIP: sources, loss, resume, and the file it writes."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path

import compat  # noqa: F401

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from capt_tools import pretrain_clip
from capt_tools.pretraining import model as clip_model
from capt_tools.pretraining import sources, zero_shot
from capt_tools.pretraining.training import Captions, Engine, Trainer, augment, contrastive_loss
from trainers.capt.backbone.prompted_clip import load_clip

TINY = "--image-size 16 --patch 8 --vision-width 64 --vision-layers 1 --text-width 64 --text-layers 1 --embed-dim 16"
COLOURS = {"red": (220, 30, 30), "sky_blue": (40, 90, 220), "green": (30, 200, 60)}


def png(colour, index, size=(20, 16)):
    noise = np.random.default_rng(index).integers(0, 30, size=(*size[::-1], 3))
    buffer = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for index in range(4):
            (root / name / f"{index}.png").write_bytes(png(colour, index))
    return root


@pytest.fixture(scope="module")
def tar(folder):
    path = folder.parent / "pictures.tar"
    with tarfile.open(path, "w") as archive:
        for picture in sorted(folder.rglob("*.png"), reverse=True):
            archive.add(picture, f"./{picture.relative_to(folder)}")
    return path


def run(out, images, *more):
    fixed = ["--precision", "fp32", "--attention", "math", "--batch", "6", "--lr", "1e-3"]
    return pretrain_clip.main([str(out), "--images", str(images), *TINY.split(), *fixed, *map(str, more)])


# ---- sources ------------------------------------------------------------------------------------------------------


def test_tar_and_folder_give_the_same(folder, tar):
    from_folder, from_tar = (sources.read_images(str(path), 16) for path in (folder, tar))
    assert torch.equal(from_folder.images, from_tar.images)
    assert from_folder.images.shape == (12, 3, 16, 16)
    assert from_folder.labels.tolist() == from_tar.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert from_folder.names == from_tar.names == (("green",), ("red",), ("sky blue",))
    assert from_folder.images[0].float().mean(dim=(1, 2)).round().argmax() == 1  # green


def test_class_name_file_beside_the_pictures(folder, tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "a.png").write_bytes(png((200, 0, 0), 1))
    (tmp_path / "classnames.txt").write_text("red\tcrimson, scarlet\n")
    assert sources.read_images(str(tmp_path), 16).names == (("crimson", "scarlet"),)


@pytest.mark.parametrize(
    "line", ["n01\tgoldfish, golden carp", "n01,goldfish, golden carp", "n01 goldfish,golden carp"]
)
def test_class_name_lines(line):
    assert sources.parse_class_names(f"{line}\n\n", "x") == {"n01": ("goldfish", "golden carp")}


def test_class_names_with_spaces_need_no_quotes():
    assert sources.parse_class_names("n02 great white shark", "x") == {"n02": ("great white shark",)}
    assert sources.parse_class_names("my folder\tshark", "x") == {"my folder": ("shark",)}


def test_sources_with_the_same_class_are_merged(folder):
    first = sources.read_images(str(folder), 16, {"red": ("red",), "green": ("green",), "sky_blue": ("Blue", "azure")})
    second = sources.read_images(str(folder), 16, {"red": ("pink",), "green": ("blue", "navy"), "sky_blue": ("red",)})
    merged = sources.merge([first, second])
    assert merged.names == (("green",), ("red",), ("Blue", "azure", "blue", "navy"), ("pink",))
    assert merged.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [2] * 4 + [3] * 4 + [1] * 4
    assert torch.equal(merged.images[12:], second.images)


def test_source_errors(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="--images must be an image tar or a folder, there is no"):
        sources.read_images(str(tmp_path / "none"), 16)
    with pytest.raises(ValueError, match="must hold pictures in class sub-folders"):
        sources.read_images(str(tmp_path), 16)
    with pytest.raises(ValueError, match="2 sub-folders of .* have no line in the class-name file, e.g. green"):
        sources.read_images(str(folder), 16, {"red": ("red",)})
    with pytest.raises(ValueError, match="line 1 must be a folder and its names, got 'n01'"):
        sources.parse_class_names("n01", "names.txt")
    (tmp_path / "no.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match="no.tar must be an image tar or a folder"):
        sources.read_images(str(tmp_path / "no.tar"), 16)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png cannot be read as a picture"):
        sources.read_images(str(tmp_path), 16)


# ---- loss, augmentation, captions ---------------------------------------------------------------------------------


def test_loss_worked_by_hand():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.eye(2)
    # Logits: two images of caption 0 with (2, 0), one of caption 1 with (0, 2).
    to_text = math.log(math.exp(2) + 1) - 2
    first = math.log(2 * math.exp(2) + 1) - 2
    second = math.log(math.exp(2) + 2) - 2
    expected = (to_text + (first + second) / 2) / 2
    loss = contrastive_loss(images, texts, torch.tensor([0, 0, 1]), torch.tensor(2.0))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_loss_with_distinct_captions_is_clips():
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 8, generator=generator), dim=1) for _ in range(2))
    logits, target = 7.0 * images @ texts.t(), torch.arange(5)
    clips = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
    assert torch.allclose(contrastive_loss(images, texts, target, torch.tensor(7.0)), clips)


def test_augmentation_is_repeatable_and_mild():
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, two = (augment(images, torch.Generator().manual_seed(3), 0.5) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == images.shape
    assert not torch.allclose(one[0], images[0])
    uniform = torch.full((4, 3, 16, 16), 0.5)
    assert (augment(uniform, torch.Generator().manual_seed(1), 0.5) - 0.5).abs().max() <= 0.1 + 1e-6


def test_captions_use_all_names_and_templates_of_the_class():
    captions = Captions([("red",), ("blue", "azure")], ("a {}.", "one {}"), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([captions.draw(torch.tensor([1, 0]), generator) for _ in range(60)])
    allowed = [
        clip_model.tokenize([t.format(n) for n in own for t in ("a {}.", "one {}")])
        for own in (("blue", "azure"), ("red",))
    ]
    for column, texts in enumerate(allowed):
        assert {tuple(row.tolist()) for row in drawn[:, column]} == {tuple(row.tolist()) for row in texts}


# ---- model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    return clip_model.build(
        image_size=16, patch=8, vision_width=64, vision_layers=1, text_width=64, text_layers=2, embed=16
    )


def test_towers_are_stock_clips(tiny_model):
    ids = clip_model.tokenize(["a photo of a cat.", "a dog"])
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(
            clip_model.encode_texts(tiny_model, ids), F.normalize(tiny_model.encode_text(ids), dim=1), atol=1e-5
        )
        assert torch.allclose(
            clip_model.encode_images(tiny_model, images), F.normalize(tiny_model.encode_image(images), dim=1), atol=1e-5
        )


def test_saved_file_is_stock(tiny_model, tmp_path):
    clip_model.save(tiny_model, tmp_path / "tiny.pt")
    stored = torch.load(tmp_path / "tiny.pt", weights_only=True)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    loaded = load_clip(str(tmp_path / "tiny.pt"))
    assert loaded.visual.input_resolution == 16
    for key, value in tiny_model.state_dict().items():
        assert torch.allclose(loaded.state_dict()[key], value, atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vision_width": 100}, "--vision-width must be a multiple of 64, got 100"),
        ({"text_width": 32}, "--text-width must be a multiple of 64, got 32"),
        ({"patch": 7}, "--image-size must be a multiple of --patch, got 16 and 7"),
    ],
)
def test_impossible_sizes(sizes, message):
    plain = {"image_size": 16, "patch": 8, "vision_width": 64, "vision_layers": 1, "text_width": 64, "text_layers": 1}
    with pytest.raises(ValueError, match=message):
        clip_model.build(**{**plain, "embed": 16, **sizes})


def test_zero_shot_halves(monkeypatch):
    features = torch.eye(5)[[0, 1, 4, 3, 4]]  # labels 0 1 2 3 4; the picture of class 2 looks like class 4
    monkeypatch.setattr(zero_shot, "image_features", lambda *_: features)
    monkeypatch.setattr(zero_shot, "text_features", lambda *_: torch.eye(5))
    pictures = sources.Pictures(torch.zeros(5, 3, 16, 16), torch.arange(5), tuple((name,) for name in "abcde"))
    found = zero_shot.evaluate(None, pictures, "{}")
    assert found["all"].plain == pytest.approx(80)
    assert (found["base"].classes, found["base"].images) == (3, 3)
    assert (found["new"].classes, found["new"].plain) == (2, 100)


# ---- the tool -----------------------------------------------------------------------------------------------------


def test_trains_and_saves(tar, tmp_path, capsys):
    assert run(tmp_path / "a.pt", tar, "--epochs", 12, "--checkpoint-every", 5) == 0
    out = capsys.readouterr().out
    losses = [float(line.split("loss")[1].split()[0]) for line in out.splitlines() if line.startswith("epoch")]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    model = load_clip(str(tmp_path / "a.pt"))
    pictures = sources.read_images(str(tar), 16)
    assert zero_shot.evaluate(model, pictures, "a photo of a {}.")["all"].plain == 100


def test_killed_run_continues_to_the_same_weights(folder, tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "whole.pt", folder, "--epochs", 3) == 0
    real = Trainer.train_epoch

    def killed(self, *args):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Trainer, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.pt", folder, "--epochs", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pt.checkpoint", "whole.pt"]
    monkeypatch.setattr(Trainer, "train_epoch", real)
    capsys.readouterr()
    assert run(tmp_path / "cut.pt", folder, "--epochs", 3) == 0
    out = capsys.readouterr().out
    assert "behind epoch 2" in out
    assert "epoch 2/3" not in out
    whole, cut = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "cut.pt"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pt", "whole.pt"]


def test_foreign_checkpoint_is_refused(folder, tmp_path, capsys):
    torch.save({"fingerprint": "other"}, tmp_path / "a.pt.checkpoint")
    assert run(tmp_path / "a.pt", folder, "--epochs", 1) == 1
    assert "belongs to a run with other settings or pictures" in capsys.readouterr().err


def test_finished_file_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(b"here")
    assert pretrain_clip.main([str(tmp_path / "a.pt")]) == 0
    assert "delete it to train again" in capsys.readouterr().out
    assert (tmp_path / "a.pt").read_bytes() == b"here"


def test_the_faster_engine_wins(folder, monkeypatch, capsys):
    speeds = {("fp32", "math"): 5.0, ("fp32", "flash"): 7.0, ("bf16", "math"): 9.0, ("bf16", "flash"): 2.0}
    monkeypatch.setattr(Trainer, "trial", lambda self, engine: speeds[engine.precision, engine.attention])
    args = pretrain_clip.parse_args(["x.pt", "--images", str(folder), *TINY.split()])
    model = pretrain_clip.build_model(args, torch.device("cpu"))
    pictures = pretrain_clip.load_pictures(args)
    trainer = Trainer(model, pictures, ["{}"], batch=4, lr=1e-3, weight_decay=0.0, min_area=1.0, seed=1)
    assert pretrain_clip.choose_engine(args, trainer) == (Engine("bf16", "math"), 9.0)
    args.precision = "fp32"
    assert pretrain_clip.choose_engine(args, trainer)[0] == Engine("fp32", "flash")
    assert "measured bf16 flash" in capsys.readouterr().out


def test_measuring_leaves_the_weights(tiny_model, folder):
    pictures = sources.read_images(str(folder), 16)
    trainer = Trainer(tiny_model, pictures, ["{}"], batch=4, lr=1e-2, weight_decay=0.0, min_area=1.0, seed=1)
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    args = pretrain_clip.parse_args(["x.pt", "--images", str(folder)])
    _, speed = pretrain_clip.choose_engine(args, trainer)
    assert speed > 0
    assert all(torch.equal(before[key], value) for key, value in tiny_model.state_dict().items())


def test_bf16_agrees_with_fp32(tiny_model, folder):
    pictures = sources.read_images(str(folder), 16)
    with torch.no_grad():
        exact = zero_shot.image_features(tiny_model, pictures.images)
        with Engine("bf16", "flash").running(torch.device("cpu")):
            rough = zero_shot.image_features(tiny_model, pictures.images)
    assert not torch.equal(exact, rough)
    assert torch.allclose(exact, rough, atol=0.03)


def test_data_set_source_and_evaluation(tmp_path, monkeypatch, capsys):
    from datasets import glyph_files
    from datasets.glyph_files import SPLIT_SIZES

    for split, size in {"train": 1, "val": 1, "test": 1}.items():
        monkeypatch.setitem(SPLIT_SIZES, split, size)
    monkeypatch.setattr(glyph_files, "draw", lambda *_: Image.new("RGB", (16, 16)))
    fixed = ["--precision", "fp32", "--attention", "math", "--epochs", "1", "--root", str(tmp_path / "data")]
    command = [str(tmp_path / "a.pt"), "--dataset", "Glyphs", *TINY.split(), *fixed, "--eval-dataset", "Glyphs"]
    assert pretrain_clip.main(command) == 0
    out = capsys.readouterr().out
    assert "48 pictures under 48 class names" in out
    assert "zero-shot Glyphs test all : 2.08 % plain" in out  # all pictures are alike: one class of 48
    assert "zero-shot Glyphs test new : 4.17 % plain" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to train on"),
        (["--images", "x", "--templates", "a photo"], "must hold {} once"),
        (["--images", "x", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--images", "x", "--minutes", "0"], "--minutes must be above 0"),
        (["--images", "x", "--min-area", "2"], r"--min-area must be in \(0, 1\]"),
    ],
)
def test_bad_flags(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        pretrain_clip.main([str(tmp_path / "a.pt"), *flags])
    assert stop.value.code == 2
    assert message.replace("\\", "") in capsys.readouterr().err


def test_missing_pictures_are_one_line(tmp_path, capsys):
    assert run(tmp_path / "a.pt", tmp_path / "none") == 1
    assert capsys.readouterr().err.count("\n") == 1


# ---- the file it made ---------------------------------------------------------------------------------------------


@pytest.mark.regression
def test_demo_clip_confuses_look_alikes():
    from datasets.glyph_drawing import draw
    from datasets.glyph_files import CLASS_NAMES
    from datasets.glyph_shapes import LOOK_ALIKES

    pictures = [draw("test", label, index) for label in range(48) for index in range(6)]
    images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    labels = torch.arange(48).repeat_interleave(6)
    path = Path(pretrain_clip.__file__).parents[1] / "assets" / "glyphs_clip.pt"
    assert path.stat().st_size < 10e6
    model = load_clip(str(path))
    for name, found in zero_shot.evaluate(
        model, sources.Pictures(images, labels, tuple((name,) for name in CLASS_NAMES)), "a photo of a {}."
    ).items():
        assert 40 < found.plain < 80, name
    texts = zero_shot.text_features(model, [f"a photo of a {name}." for name in CLASS_NAMES])
    predicted = (zero_shot.image_features(model, images) @ texts.t()).argmax(dim=1)
    taken_for = {CLASS_NAMES.index(b): CLASS_NAMES.index(a) for a, b in LOOK_ALIKES}
    planted = sum(
        taken_for.get(label) == found for label, found in zip(labels.tolist(), predicted.tolist(), strict=True)
    )
    assert planted > (predicted != labels).sum() / 2
