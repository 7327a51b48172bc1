"""How images reach the tower: in chunks from few processes, with the pixels, batches and order of one image a time."""

from __future__ import annotations

import os

import pytest
import tiny_capt
import torch
from PIL import Image
from torchvision import transforms

from trainers.capt.backbone.prompted_clip import ImageFeatures
from trainers.capt.run import encoding as encoding_module
from trainers.capt.run.encoding import AHEAD, Encoding, sensible_workers
from trainers.capt.run.views import ViewDataset

TEST = transforms.Compose([transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor()])
TRAIN = transforms.Compose([transforms.RandomResizedCrop(8), transforms.RandomHorizontalFlip(), transforms.ToTensor()])
CPU = torch.device("cpu")
NUM = 23


class Item:
    def __init__(self, impath):
        self.impath, self.label = impath, 0


class Recorder:
    """A tower that gives back the pixels which it is given, and keeps how they came."""

    tower = None

    def __init__(self):
        self.batches = []

    def encode_image(self, images):
        self.batches.append((tuple(images.shape), images.is_contiguous()))
        return ImageFeatures(images.flatten(1), None, None)


def read_image(path):
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    paths = tiny_capt.draw_pictures(tmp_path_factory.mktemp("data"), ["a"], NUM)
    return [Item(path) for path in paths["a"]]


def views(items, num_views=3):
    return ViewDataset(items, num_views, TEST, TRAIN, read_image, seed=1)


@pytest.fixture
def loaders(monkeypatch):
    """The arguments of each loader that is made."""
    made = []

    def spy(dataset, *args, **kwargs):
        made.append((dataset, kwargs))
        return torch.utils.data.DataLoader(dataset, *args, **kwargs)

    monkeypatch.setattr(encoding_module, "DataLoader", spy)
    return made


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 100])
def test_pixels_and_batches_are_those_of_one_image_a_time(items, workers, batch_size):
    """Against the naive loop: a batch of each view after the other, stacked from images that are read one by one."""
    images = views(items)
    tower = Recorder()
    batches = list(Encoding(tower, images, CPU, batch_size, workers))
    expected, given, cut = [], [], [range(s, min(NUM, s + batch_size)) for s in range(0, NUM, batch_size)]
    for places in cut:
        for view in range(3):
            expected.append(torch.stack([images.pixels(place, [view])[0] for place in places]).flatten(1))
            given.append(((len(places), 3, 8, 8), True))
    assert tower.batches == given
    assert [batch.places for batch in batches] == [
        range(s, min(NUM, s + batch_size)) for s in range(0, NUM, batch_size)
    ]
    made = [view.feature for batch in batches for view in batch.views]
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize(
    ("workers", "num_views", "batch_size", "longest"), [(1, 1, 10, 5), (2, 1, 10, 2), (2, 3, 12, 1), (2, 2, 100, 12)]
)
def test_what_workers_send_and_what_waits_is_bounded(items, loaders, workers, num_views, batch_size, longest):
    list(Encoding(Recorder(), views(items, num_views), CPU, batch_size, workers))
    [(reads, options)] = loaders
    chunks = [chunk for chunk, _ in reads.items]
    assert [place for chunk in chunks for place in chunk] == list(range(NUM))
    assert max(len(chunk) for chunk in chunks) == longest
    assert all(chunk[0] // batch_size == chunk[-1] // batch_size for chunk in chunks)  # of one batch
    waiting = options["num_workers"] * options["prefetch_factor"] * longest * num_views
    assert options["prefetch_factor"] == AHEAD
    assert waiting <= batch_size
    assert reads[1].shape == (num_views, len(chunks[1]), 3, 8, 8)  # one tensor, which is one file of shared memory


def test_no_more_workers_than_chunks(items, loaders):
    list(Encoding(Recorder(), views(items[:3]), CPU, 1, 8))
    assert loaders[0][1]["num_workers"] == 3
    list(Encoding(Recorder(), views(items[:3]), CPU, 1, 0))
    assert loaders[1][1]["num_workers"] == 0


def test_no_more_workers_than_cores_of_this_process(monkeypatch):
    """A job of Slurm has some of a machine's cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert [sensible_workers(asked) for asked in (0, 1, 2, 8)] == [0, 1, 2, 2]
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert [sensible_workers(asked) for asked in (0, 8, 100)] == [0, 8, 64]


def test_a_damaged_image_in_a_worker_is_named(items, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    with pytest.raises(OSError, match="broken.png"):
        list(Encoding(Recorder(), views([*items[:5], Item(str(broken))]), CPU, 4, 2))
