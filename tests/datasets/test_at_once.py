"""Runs that start on the same data for the first time at once: none reads half a file, and all see the same data."""

import multiprocessing
import sys
import time
from pathlib import Path

import pytest
import trees

sys.path.insert(0, str(Path(__file__).parents[1]))

import killing  # noqa: E402

from trainers.capt.backbone import stock_clip  # noqa: E402


def at_once(number, work):
    """Run ``work(i)`` in so many processes that wait for each other first."""
    gate = multiprocessing.get_context("fork").Barrier(number)

    def one(i):
        gate.wait(20)
        work(i)

    children = [killing.started(lambda i=i: one(i)) for i in range(number)]
    assert [killing.ended(child) for child in children] == [0] * number


def seen(dataset):
    return [[(item.impath, item.label) for item in part] for part in (dataset.train_x, dataset.val, dataset.test)]


@pytest.mark.parametrize("attempt", range(3))
def test_splits_and_shots(tmp_path, load, attempt):
    """The first runs of two seeds, twice each; what each saw is what later runs read."""
    trees.BUILDERS["Caltech101"](tmp_path)
    for split in (tmp_path / "caltech-101").glob("split_zhou*"):
        split.unlink()

    def work(i):
        found = seen(load("Caltech101", tmp_path, num_shots=2, seed=i % 2))
        (tmp_path / f"seen{i}").write_text(repr(found))

    at_once(4, work)
    for i in range(4):
        assert (tmp_path / f"seen{i}").read_text() == repr(seen(load("Caltech101", tmp_path, num_shots=2, seed=i % 2)))
    assert not [*(tmp_path / "caltech-101").glob(".*"), *(tmp_path / "caltech-101/split_fewshot").glob(".*")]


def test_downloads_of_clip(tmp_path, monkeypatch):
    """A slow download that another run must not take for a finished one."""

    def download(url, root):
        path = Path(root) / Path(url).name
        if not path.exists():
            with path.open("w") as file:
                for part in "whole":
                    file.write(part)
                    file.flush()
                    time.sleep(0.02)
        return str(path)

    monkeypatch.setattr(stock_clip._clip_py, "_download", download)

    def work(i):
        time.sleep(0.03 * i)
        assert Path(stock_clip.download("ViT-B/32", str(tmp_path / "cache"))).read_text() == "whole"

    at_once(3, work)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["ViT-B-32.pt"]
