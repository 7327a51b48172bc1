"""Known pixels reach training loader, test loader, cache, prediction and report alike, whatever reads for Dassl."""

import base64
import io
import json
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data import data_manager
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import read_image as read_of_dassl
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "capt"))

import known_pictures  # noqa: E402
import tiny_capt  # noqa: E402

import datasets  # noqa: E402, F401
import trainers  # noqa: E402
from capt.use import explanation  # noqa: E402
from capt_tools import confusion_report, export_features  # noqa: E402
from capt_tools.pretraining.sources import read_images  # noqa: E402
from capt_tools.report.pictures import Album  # noqa: E402
from capt_tools.report.runs import read_run  # noqa: E402
from trainers.capt import load  # noqa: E402
from trainers.capt.run.feature_cache import ViewDataset  # noqa: E402
from trainers.capt.run.pictures import ImageError, read_image  # noqa: E402
from trainers.capt.run.reading import lend_reader, way_of  # noqa: E402

SIDE = known_pictures.SIDE


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes, all kinds of pictures in both and in each part, and a CLIP of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("reading")
    known = {}
    for part in ("train", "test"):
        for name in ("cup", "jug"):
            found = known_pictures.write_all(folder / "photos" / part / name)
            known |= {str(folder / "photos" / part / name / file): pixels for file, pixels in found.items()}
    torch.save(tiny_capt.clip_state(), folder / "clip.pt")
    return types.SimpleNamespace(folder=folder, root=folder / "photos", known=known)


def build(photos, out, *more):
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    options = ["DATASET.NAME", "Folder", "DATASET.ROOT", str(photos.root), "OUTPUT_DIR", str(out), "SEED", 1]
    options += ["MODEL.BACKBONE.NAME", str(photos.folder / "clip.pt"), "INPUT.SIZE", (SIDE, SIDE), "USE_CUDA", False]
    options += ["INPUT.TRANSFORMS", ("normalize",), "INPUT.PIXEL_MEAN", [0.0] * 3, "INPUT.PIXEL_STD", [1.0] * 3]
    options += ["TRAINER.NAME", "CAPT", "TRAINER.CAPT.PREC", "fp32", "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0]
    cfg.merge_from_list([*options, "VERBOSE", False, *more])
    cfg.freeze()
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)


def expected(photos, path, shown):
    return torch.from_numpy(photos.known[path][shown].copy()).permute(2, 0, 1) / 255


def check_loader(photos, loader, shown):
    """Every picture of a loader of Dassl's has just the known pixels; how many there were."""
    num = 0
    for batch in loader:
        for path, pixels in zip(batch["impath"], batch["img"], strict=True):
            assert torch.equal(pixels, expected(photos, path, shown)), path
            num += 1
    return num


@pytest.mark.parametrize("way", ["auto", "shown", "stored"])
def test_training_and_test_loaders_and_the_cache(photos, tmp_path, way):
    trainer = build(photos, tmp_path, "INPUT.PICTURES", way, "DATALOADER.TRAIN_X.BATCH_SIZE", 1)
    shown = way != "stored"  # auto: the data set Folder is shown
    assert trainer.pictures == ("shown" if shown else "stored")
    num = len(photos.known) // 2
    assert check_loader(photos, trainer.train_loader_x, shown) == num
    assert check_loader(photos, trainer.test_loader, shown) == num
    encode = trainer._encode
    transforms = encode.test_transform, encode.train_transform
    views = ViewDataset(trainer.dm.dataset.train_x, 2, *transforms, encode.read_image, encode.seed)
    for pixels, _, index, _ in views:
        path = trainer.dm.dataset.train_x[index].impath
        assert torch.equal(pixels, expected(photos, path, shown)), path


def test_a_trained_run_predicts_and_reports_what_it_read(photos, tmp_path):
    trainer = build(photos, tmp_path)
    trainer.train()
    record = json.loads((tmp_path / "results.json").read_text())
    assert (record["pictures"], record["config"]["INPUT"]["PICTURES"]) == ("shown", "auto")
    run, seen = load(tmp_path), []
    forward = run.forward
    run.forward = lambda pixels: (seen.append(pixels), forward(pixels))[1]
    predictions = np.load(tmp_path / "predictions.npz")
    paths = [str(photos.root / path) for path in predictions["impaths"]]
    logits = run.logits(paths)
    for path, pixels in zip(paths, torch.cat(seen), strict=True):
        assert torch.equal(pixels, expected(photos, path, shown=True)), path
    np.testing.assert_allclose(logits.softmax(dim=-1), predictions["probs"], atol=1e-5)
    with Image.open(photos.root / "test" / "cup" / "turned.png") as image:
        assert torch.equal(run.logits([image]), run.logits([photos.root / "test" / "cup" / "turned.png"]))
    assert read_run(tmp_path).is_shown


def test_features_and_report_read_a_run_as_it_read(photos, tmp_path, monkeypatch):
    trainer = build(photos, tmp_path, "INPUT.PICTURES", "stored")
    trainer.train()
    assert export_features.main(["--run", str(tmp_path), "--no-picture"]) == 0
    with np.load(tmp_path / "features" / "features.npz") as arrays:
        paths, before = arrays["paths"], arrays["before"]
    pixels = torch.stack([expected(photos, str(photos.root / path), shown=False) for path in paths])
    run = load(tmp_path)
    (_, output), *_ = run.batches(pixels)
    torch.testing.assert_close(torch.from_numpy(before), output.z, atol=1e-5, rtol=0)
    (_, output), *_ = run.batches([photos.root / path for path in paths])
    assert not torch.allclose(torch.from_numpy(before), output.z, atol=1e-3)  # prediction reads as shown

    asked, explain = [], explanation.explain
    monkeypatch.setattr(explanation, "explain", lambda *a, **k: (asked.append(k["shown"]), explain(*a, **k))[1])
    assert confusion_report.main([str(tmp_path), "--output", str(tmp_path / "report")]) == 0
    assert asked == [False]


def data_uri(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_thumbnails_of_the_report(photos):
    album = Album(10**7)
    for shown in (True, False, True):
        album.shown = shown
        for path, pixels in photos.known.items():
            assert album.uris[album.add(Path(path))] == data_uri(pixels[shown]), path
    assert len(album.uris) == 2 * len(photos.known)  # each once either way
    assert not album.missing


def test_the_other_trainers_read_alike(photos, tmp_path):
    trainer = build(photos, tmp_path, "TRAINER.NAME", "ZeroshotCLIP")
    assert check_loader(photos, trainer.test_loader, shown=True) == len(photos.known) // 2
    trainer = build(photos, tmp_path, "TRAINER.NAME", "LinearProbe", "TRAINER.LINEARPROBE.PREC", "fp32")
    assert check_loader(photos, trainer.train_loader_x, shown=True) == 32  # one whole batch
    items, views = trainer.dm.dataset.train_x, trainer.encode_shots().rows
    pixels = torch.stack([expected(photos, item.impath, shown=True) for item in items])
    z = torch.nn.functional.normalize(trainer.clip.encode_image(pixels).feature, dim=-1)
    torch.testing.assert_close(views.z[:: len(views.z) // len(items)], z, atol=1e-4, rtol=0)


def test_pre_training_reads_what_is_shown(photos):
    pictures = read_images(str(photos.root / "train"), SIDE)
    paths = [path for path in sorted(photos.known) if "/train/" in path and Path(path).suffix in (".png", ".jpg")]
    assert len(pictures.images) == len(paths) > 20
    for path, image in zip(paths, pictures.images, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), photos.known[path].shown, path)


def test_what_decides():
    cfg = get_cfg_default()
    folder, published = types.SimpleNamespace(pictures="shown"), types.SimpleNamespace()
    assert (way_of(cfg, folder), way_of(cfg, published)) == ("shown", "stored")  # a host that has no such key
    trainers.extend_cfg(cfg)
    assert cfg.INPUT.PICTURES == "auto"
    assert (way_of(cfg, folder), way_of(cfg, published)) == ("shown", "stored")
    for way in ("shown", "stored"):
        cfg.INPUT.PICTURES = way
        assert (way_of(cfg, folder), way_of(cfg, published)) == (way, way)
    cfg.INPUT.PICTURES = "upright"
    with pytest.raises(ValueError, match="INPUT.PICTURES must be one of auto, stored, shown, got 'upright'"):
        way_of(cfg, folder)


def test_the_published_sets_are_stored():
    from dassl.data.datasets import DATASET_REGISTRY

    ways = {name: way_of(get_cfg_default(), DATASET_REGISTRY.get(name)) for name in DATASET_REGISTRY.registered_names()}
    ours = {name: way for name, way in ways.items() if DATASET_REGISTRY.get(name).__module__.startswith("datasets.")}
    assert len(ours) > 15
    assert {name for name, way in ours.items() if way == "shown"} == {"Folder"}


# Dassl's loaders are taught, in this process and in workers


@pytest.fixture
def loader(photos):
    """A loader of Dassl's over all pictures, with a start of its own for workers; Dassl's reader is put back."""
    cfg = get_cfg_default()
    cfg.DATALOADER.NUM_WORKERS = 1
    items = [types.SimpleNamespace(impath=path, label=0, domain=0) for path in photos.known]
    transform = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # noqa: E731
    before = data_manager.read_image
    data_manager.read_image = read_of_dassl
    made = data_manager.build_data_loader(cfg, data_source=items, batch_size=1, tfm=transform, is_train=False)
    started = []
    made.worker_init_fn = started.append
    made.started = started
    yield made
    data_manager.read_image = before


def test_dassl_by_itself_reads_16_bits_as_white(photos, loader):
    """What this is for: the old code gave a white picture without a word."""
    pixels = {batch["impath"][0]: batch["img"][0] for batch in loader}
    path = next(path for path in photos.known if path.endswith("grey16.png"))
    assert pixels[path].mean() > 0.95
    assert expected(photos, path, shown=False).mean() == pytest.approx(0.5, abs=0.01)


def test_workers_are_taught_and_start_as_they_did(photos, loader):
    lend_reader(loader, read_image)
    lend_reader(loader, read_image)  # a second trainer's
    assert check_loader(photos, loader, shown=False) == len(photos.known)
    start = loader.worker_init_fn
    assert start.then.__self__ is loader.started
    data_manager.read_image = read_of_dassl  # as in a process that imported Dassl anew
    start(3)
    assert data_manager.read_image is read_image
    assert loader.started == [3]


def test_a_worker_that_is_not_forked_is_taught(photos, tmp_path):
    start = build(photos, tmp_path).test_loader.worker_init_fn
    before = data_manager.read_image
    try:
        data_manager.read_image = read_of_dassl
        pickle.loads(pickle.dumps(start))(0)
        path = next(path for path in photos.known if path.endswith("turned.png"))
        np.testing.assert_array_equal(np.asarray(data_manager.read_image(path)), photos.known[path].shown)
    finally:
        data_manager.read_image = before


@pytest.mark.slow  # a process that imports torch
def test_spawned_workers_read_alike(photos, tmp_path):
    trainer = build(photos, tmp_path, "DATALOADER.NUM_WORKERS", 1)
    trainer.test_loader.multiprocessing_context = "spawn"
    assert check_loader(photos, trainer.test_loader, shown=True) == len(photos.known) // 2


def test_a_data_set_class_with_a_reader_of_its_own_is_named(capsys):
    class OwnWay(torch.utils.data.Dataset):
        def __len__(self):
            return 1

    OwnWay.__module__ = "string"
    lend_reader(torch.utils.data.DataLoader(OwnWay()), read_image)
    assert capsys.readouterr().out == "Pictures: OwnWay of this repository reads by itself, not by INPUT.PICTURES\n"


def test_a_damaged_picture_is_named_by_the_loader(photos, tmp_path):
    trainer = build(photos, tmp_path)
    item = trainer.dm.dataset.test[0]
    item._impath = str(tmp_path / "cut.jpg")
    Path(item.impath).write_bytes(b"no image")
    with pytest.raises(ImageError, match=r'cut\.jpg" cannot be read as an image \(cannot identify image file\)'):
        next(iter(trainer.test_loader))
