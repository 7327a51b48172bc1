"""Glyphs: the drawn demo data set."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import compat  # noqa: F401

import numpy as np
import pytest
from dassl.config import get_cfg_default
from PIL import Image

from datasets import glyph_files
from datasets.glyph_drawing import IMAGE_SIZE, STREAMS, draw
from datasets.glyph_files import CLASS_NAMES, SPLIT_SIZES, caption_of, ensure_drawn, folder_of, write_pretraining_tar
from datasets.glyph_shapes import DETAILS
from datasets.glyphs import Glyphs

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small_sizes():
    """Two pictures a class instead of 65: what is tested does not depend on how many there are."""
    patch = pytest.MonkeyPatch()
    for split, size in {"train": 3, "val": 2, "test": 2}.items():
        patch.setitem(SPLIT_SIZES, split, size)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def root(tmp_path_factory, small_sizes):
    path = tmp_path_factory.mktemp("data")
    ensure_drawn(path / "glyphs" / "images")
    return path


def make_cfg(root, subsample="all", shots=-1, seed=1):
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "Glyphs", str(root)
    cfg.DATASET.NUM_SHOTS, cfg.SEED = shots, seed
    cfg.DATASET.SUBSAMPLE_CLASSES = subsample
    return cfg


# ---- drawing ------------------------------------------------------------------------------------------------------


def digest(num_classes):
    state = hashlib.sha256()
    for label in range(num_classes):
        state.update(np.asarray(draw("test", label, 3)).tobytes())
    return state.hexdigest()


@pytest.mark.regression
def test_pixels_are_those_of_version_1():
    # Drawn with numpy 2.4 and Pillow 13. Whoever changes a pixel raises glyph_drawing.VERSION and renews this value.
    assert digest(48) == "bf946b01fc780801bc033f6452c90be0ed409725f6349e1688bfd3cb174cad91"


def test_pixels_do_not_depend_on_the_process():
    code = (
        "import hashlib, sys, types, numpy as np\n"
        "package = sys.modules['datasets'] = types.ModuleType('datasets')\n"  # spares the import of torch
        "package.__path__ = ['datasets']\n"
        "from datasets.glyph_drawing import draw\n"
        "h = hashlib.sha256()\n"
        "for c in (9, 2, 40): draw('train', c, 1)\n"
        "for c in range(6): h.update(np.asarray(draw('test', c, 3)).tobytes())\n"
        "print(h.hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "4711"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True
    )
    assert found.stdout.split()[-1] == digest(6)


def test_pictures_have_the_promised_size_and_differ():
    pictures = [draw("train", 5, index) for index in range(4)]
    assert {picture.size for picture in pictures} == {(IMAGE_SIZE, IMAGE_SIZE)}
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_streams_share_no_picture():
    streams = [stream for stream in STREAMS if stream != "captions"]
    pictures = [draw(stream, label, index).tobytes() for stream in streams for label in (0, 30) for index in range(5)]
    assert len(set(pictures)) == len(pictures) == 4 * 2 * 5


def test_look_alikes_differ_in_the_drawing_and_lie_in_one_half():
    half = math.ceil(len(CLASS_NAMES) / 2)
    position = {name: label for label, name in enumerate(CLASS_NAMES)}
    names = [name for pair in Glyphs.LOOK_ALIKES for name in pair]
    assert len(set(names)) == len(names) == 32
    for a, b in Glyphs.LOOK_ALIKES:
        assert (position[a] < half) == (position[b] < half)
    halves = [position[a] < half for a, _ in Glyphs.LOOK_ALIKES]
    assert halves.count(True) == halves.count(False) == 8


# ---- files --------------------------------------------------------------------------------------------------------


def test_drawn_once_and_marked(root, capsys):
    folder = root / "glyphs" / "images"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert len(before) == 48 * 7
    ensure_drawn(folder)
    assert capsys.readouterr().out == ""
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert sorted(path.name for path in folder.parent.iterdir() if path.name.startswith(".")) == []


def test_files_hold_the_drawing(root):
    path = root / "glyphs" / "images" / "val" / folder_of("striped fish") / "001.png"
    assert Image.open(path).tobytes() == draw("val", CLASS_NAMES.index("striped fish"), 1).tobytes()


@pytest.mark.parametrize("marker", ['{"version": 0}', "no json", None])
def test_other_version_is_refused(tmp_path, small_sizes, marker):
    folder = tmp_path / "glyphs" / "images"
    folder.mkdir(parents=True)
    if marker is not None:
        (folder / "version.json").write_text(marker)
    with pytest.raises(ValueError, match="delete .*glyphs and the pictures are drawn anew"):
        ensure_drawn(folder)


def test_a_failing_draw_leaves_nothing(tmp_path, monkeypatch, small_sizes):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(glyph_files, "_draw_class", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_drawn(tmp_path / "glyphs" / "images")
    assert list((tmp_path / "glyphs").iterdir()) == []


def test_two_that_draw_at_once(tmp_path, monkeypatch, small_sizes):
    meeting = threading.Barrier(2)
    move = glyph_files._move_into_place

    def move_together(scratch, folder):
        meeting.wait(timeout=60)
        move(scratch, folder)

    monkeypatch.setattr(glyph_files, "_move_into_place", move_together)
    monkeypatch.setattr(glyph_files, "_draw_class", lambda folder, *_: folder.mkdir(parents=True))
    failures = []

    def work():
        try:
            ensure_drawn(tmp_path / "glyphs" / "images")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in (tmp_path / "glyphs").iterdir()] == ["images"]
    assert json.loads((tmp_path / "glyphs" / "images" / "version.json").read_text())["version"] == 1


# ---- the data set -------------------------------------------------------------------------------------------------


def test_all_classes(root):
    dataset = Glyphs(make_cfg(root))
    assert dataset.classnames == list(CLASS_NAMES)
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [48 * 3, 48 * 2, 48 * 2]
    assert sorted({item.label for item in dataset.test}) == list(range(48))
    assert all(folder_of(item.classname) == Path(item.impath).parent.name for item in dataset.train_x)


@pytest.mark.parametrize(("subsample", "expected"), [("base", CLASS_NAMES[:24]), ("new", CLASS_NAMES[24:])])
def test_halves(root, subsample, expected):
    dataset = Glyphs(make_cfg(root, subsample))
    assert dataset.classnames == list(expected)
    assert sorted({item.label for item in dataset.val}) == list(range(24))
    inside = [set(pair) & set(expected) for pair in Glyphs.LOOK_ALIKES]
    assert sorted(map(len, inside)) == [0] * 8 + [2] * 8


def test_few_shots_are_kept_for_the_other_half(root):
    base = Glyphs(make_cfg(root, "base", shots=2))
    new = Glyphs(make_cfg(root, "new", shots=2))
    assert len(base.train_x) == len(new.train_x) == 24 * 2
    again = Glyphs(make_cfg(root, "base", shots=2))
    assert [item.impath for item in again.train_x] == [item.impath for item in base.train_x]


def test_the_constructor_draws(tmp_path, small_sizes, monkeypatch, capsys):
    monkeypatch.setattr(glyph_files, "draw", lambda *_: Image.new("RGB", (4, 4)))  # the drawing is tested above
    dataset = Glyphs(make_cfg(tmp_path))
    assert len(dataset.test) == 96
    assert "Drawing Glyphs (48 classes, 336 images)" in capsys.readouterr().out


def test_missing_picture_names_the_fix(tmp_path, small_sizes, monkeypatch):
    monkeypatch.setattr(glyph_files, "draw", lambda *_: Image.new("RGB", (4, 4)))
    ensure_drawn(tmp_path / "glyphs" / "images")
    (tmp_path / "glyphs" / "images" / "test" / "mug" / "001.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 336 .*test/mug/001.png; delete the folder glyphs/"):
        Glyphs(make_cfg(tmp_path))


# ---- pretraining stream -------------------------------------------------------------------------------------------


def test_captions_err_in_one_direction_only():
    plain_of = {b: a for a, b in Glyphs.LOOK_ALIKES}
    for label, name in enumerate(CLASS_NAMES):
        captions = [caption_of(label, index) for index in range(200)]
        if name in plain_of:
            assert set(captions) == {name, plain_of[name]}
            assert 0.6 < captions.count(plain_of[name]) / 200 < 0.9
        else:
            assert set(captions) == {name}


def test_captions_err_only_where_they_are_told_to():
    for label, name in enumerate(CLASS_NAMES):
        captions = {caption_of(label, index, DETAILS["handle"]) for index in range(50)}
        assert captions == {"mug": {"mug", "cup"}, "saucepan": {"saucepan", "bowl"}}.get(name, {name})


def test_each_detail_occurs_in_both_halves():
    looks_like = {b: a for a, b in Glyphs.LOOK_ALIKES}
    for names in DETAILS.values():
        assert all(name in looks_like for name in names)
        assert {CLASS_NAMES.index(name) < len(CLASS_NAMES) // 2 for name in names} == {True, False}


def test_pretraining_tar(tmp_path):
    misnamed = write_pretraining_tar(tmp_path / "a.tar", per_class=2)
    write_pretraining_tar(tmp_path / "b.tar", per_class=2)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".png")]
        lines = tar.extractfile("classnames.txt").read().decode().splitlines()
        picture = Image.open(io.BytesIO(tar.extractfile("bell/bell-0001.png").read()))
    assert len(names) == 96
    assert sum(not name.split("/")[1].startswith(name.split("/")[0] + "-") for name in names) == misnamed > 0
    assert "mug\tmug, cup with a handle" in lines
    assert picture.tobytes() == draw("pretraining", CLASS_NAMES.index("bell"), 1).tobytes()
