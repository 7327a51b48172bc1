# ruff: noqa: F811 - tests name the fixtures that they take
"""Files of features that are damaged, too many, or may not be; and many processes that write them at once."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import tiny_capt
import torch
from test_stored_features import CountingBase, base, encoded, equal, root, store, stored, views  # noqa: F401
from yacs.config import CfgNode

from trainers.capt.run.feature_files import FOLDER, OUTPUT_VARIABLE, FeatureFiles, feature_files
from trainers.capt.run.feature_names import token_bytes


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip, _empty])
def test_damaged_files_are_made_anew(root, base, capsys, damage):
    whole, _ = encoded(base, views(root), store(root))
    before = [path.read_bytes() for path in stored(root)]
    damage(stored(root)[0])
    rows, num = encoded(base, views(root), store(root))
    assert num == 10
    assert equal(rows, whole)
    out = capsys.readouterr().out
    assert f"{stored(root)[0]} is damaged (" in out
    assert "its images are encoded anew" in out
    assert [path.read_bytes() for path in stored(root)] == before


def test_what_was_not_used_for_longest_goes_first(root):
    files = FeatureFiles([root / FOLDER], 3000 / 2**30, str(root), "Tiny")
    for number, name in enumerate("abc"):
        files.write(name, {"x": torch.full((220,), float(number))})  # 880 bytes and a header
        os.utime(files.find(name), (1000 + number, 1000 + number))
    assert torch.equal(files.read("a")["x"], torch.zeros(220))  # now used last
    files.write("d", {"x": torch.ones(220)})
    assert [path.stem for path in stored(root)] == ["a", "c", "d"]
    assert sum(path.stat().st_size for path in stored(root)) <= 3000


def test_tokens_that_are_too_many_are_made_every_time(root, base, capsys):
    few = 10 * 3 * token_bytes(base.tower) / 2**30 / 2
    without, _ = encoded(base, views(root))
    for _ in range(2):
        rows, num = encoded(base, views(root), store(root, few))
        assert (num, equal(rows, without)) == (30, True)
    assert "Patch tokens of 10 images are not stored: 0.0 GB, CACHE.DISK_GB is 0.0" in capsys.readouterr().out
    assert not [path for path in stored(root) if "tokens" in path.name]
    assert encoded(base, views(root), store(root, few), with_tokens=False)[1] == 0


def test_bytes_of_tokens_are_those_of_the_tensors(root, base):
    features = base.encode_image(tiny_capt.images(1))
    assert token_bytes(base.tower) == features.cls.nbytes + features.tokens.nbytes


def _cfg(root, **cache):
    cache = {"DISK_GB": 1.0, "DIR": "", **cache}
    return CfgNode({"DATASET": {"ROOT": str(root), "NAME": "Tiny"}, "TRAINER": {"CAPT": {"CACHE": cache}}})


def test_read_only_data_are_left_alone(root, base, tmp_path, monkeypatch, capsys):
    """Root may write anywhere; a folder without any write permission is meant to stay as it is all the same."""
    monkeypatch.delenv(OUTPUT_VARIABLE, raising=False)
    root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        without, _ = encoded(base, views(root))
        assert equal(encoded(base, views(root), feature_files(_cfg(root)))[0], without)
        line = f"Image features are not stored: {root / FOLDER} cannot be written to; give TRAINER.CAPT.CACHE.DIR"
        assert capsys.readouterr().out.count(line) == 1
        monkeypatch.setenv(OUTPUT_VARIABLE, str(tmp_path / "output" / "features"))
        encoded(base, views(root), feature_files(_cfg(root)))
        assert encoded(base, views(root), feature_files(_cfg(root)))[1] == 0
        assert len(list((tmp_path / "output/features/Tiny").iterdir())) == 6
        assert sorted(path.name for path in root.iterdir()) == ["a", "b"]
    finally:
        root.chmod(0o755)
    assert "not stored" not in capsys.readouterr().out


def test_features_that_came_with_read_only_data_are_read(root, base):
    encoded(base, views(root), store(root))
    for folder in (root / FOLDER / "Tiny", root / FOLDER, root / ".capt", root):
        folder.chmod(0o555)
    try:
        assert encoded(base, views(root), feature_files(_cfg(root)))[1] == 0
    finally:
        for folder in (root, root / ".capt", root / FOLDER, root / FOLDER / "Tiny"):
            folder.chmod(0o755)


def test_a_folder_may_be_named_and_the_files_switched_off(root, base, tmp_path):
    encoded(base, views(root), feature_files(_cfg(root, DIR=str(tmp_path / "mine"))))
    assert len(list((tmp_path / "mine" / "Tiny").iterdir())) == 6
    assert not (root / ".capt").exists()
    assert feature_files(_cfg(root, DISK_GB=0.0)) is None
    assert feature_files(CfgNode({"TRAINER": {}, "DATASET": {"ROOT": str(root)}})) is None  # a host without the node


def test_a_full_disk_stops_nothing(root, base, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.capt.run.feature_files.save_file", full)
    rows, _ = encoded(base, views(root), store(root))
    assert equal(rows, encoded(base, views(root))[0])
    assert capsys.readouterr().out.count("not stored: [Errno 28] No space left on device") == 1
    assert not list((root / FOLDER / "Tiny").iterdir())  # no half files either


def test_many_at_once_store_the_same_files(root, small_clip):
    results = []

    def work():
        base = CountingBase(tiny_capt.make_base(small_clip))  # of one view: threads share the generators of the others
        results.append(encoded(base, views(root, num_views=1), store(root), batch_size=1)[0])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(equal(rows, results[0]) for rows in results)
    assert len(list(Path(root, FOLDER, "Tiny").iterdir())) == 2
