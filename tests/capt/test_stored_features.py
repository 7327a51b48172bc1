"""Features on the disk: the same bits as without, shared where nothing differs, and never those of something else."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import tiny_capt
import torch
from PIL import Image
from torchvision import transforms

from trainers.capt.backbone.digest import tower_digest
from trainers.capt.bases.prompted import DeepPromptedCLIP, LearnedPrompts
from trainers.capt.run import encoding as encoding_module
from trainers.capt.run import pictures
from trainers.capt.run.encoding import Encoding
from trainers.capt.run.feature_cache import encode_views
from trainers.capt.run.feature_files import FOLDER, FeatureFiles
from trainers.capt.run.feature_names import FeatureNames, token_bytes
from trainers.capt.run.views import ViewDataset

TEST = transforms.Compose([transforms.Resize(32), transforms.ToTensor()])
TRAIN = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.RandomResizedCrop(32), transforms.ToTensor()])
CPU = torch.device("cpu")


class Item:
    def __init__(self, impath, label):
        self.impath, self.label = impath, label


class CountingBase:
    """A base model that counts the images which it looks at."""

    def __init__(self, base):
        self.base, self.tower, self.num_images = base, base.tower, 0

    def encode_image(self, images):
        self.num_images += len(images)
        return self.base.encode_image(images)


READS = []


def read_image(path):
    READS.append(path)
    return Image.open(path).convert("RGB")


@pytest.fixture
def root(tmp_path):
    tiny_capt.draw_pictures(tmp_path / "data", ["a", "b"], 5)
    READS.clear()
    return tmp_path / "data"


@pytest.fixture
def base(small_clip):
    return CountingBase(tiny_capt.make_base(small_clip))


def items(root):
    return [Item(str(path), int(path.parent.name == "b")) for path in sorted(root.glob("*/*.png"))]


def views(root, num_views=3, seed=1, test=TEST, train=TRAIN):
    return ViewDataset(items(root), num_views, test, train, read_image, seed)


def store(root, gigabytes=1.0, folder=None):
    return FeatureFiles([folder or root / FOLDER], gigabytes, str(root), "Tiny")


def encoded(base, images, files=None, batch_size=4, **keys):
    """All views' tensors of all batches, and how many images the tower saw for them."""
    before = base.num_images
    batches = list(Encoding(base, images, CPU, batch_size, files=files, **keys))
    rows = [[value for one in batch.views for value in vars(one).values() if value is not None] for batch in batches]
    return rows, base.num_images - before


def equal(a, b):
    return len(a) == len(b) and all(
        len(x) == len(y)
        and all(torch.equal(p, q) and p.is_contiguous() == q.is_contiguous() for p, q in zip(x, y, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def stored(root):
    return sorted((root / FOLDER / "Tiny").glob("*.safetensors"))


# The same bits


@pytest.mark.parametrize("part_bytes", [1, 2**26])  # a file a batch; one file for all
@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_what_is_read_is_what_would_be_made(root, base, monkeypatch, part_bytes, batch_size):
    monkeypatch.setattr(encoding_module, "PART_BYTES", part_bytes)
    without, num = encoded(base, views(root), batch_size=batch_size)
    assert num == 30
    first, num = encoded(base, views(root), store(root), batch_size=batch_size)
    assert num == 30
    again, num = encoded(base, views(root), store(root), batch_size=batch_size)
    assert num == 0
    assert equal(without, first)
    assert equal(without, again)
    assert len(stored(root)) == 2 * 3 * (-(-10 // batch_size) if part_bytes == 1 else 1)


def test_an_image_is_read_once_for_all_its_views(root, base):
    encoded(base, views(root, num_views=4), store(root))
    assert [item.impath for item in items(root)] == READS
    encoded(base, views(root, num_views=4), store(root))
    assert len(READS) == 10


def test_views_are_the_data_sets_items(root, base):
    """Against the plain way: one view after the other, each in a batch of its own."""
    images = views(root)
    batches = list(encode_views(base, images, CPU, 4, 0, ""))
    row = 0
    for batch in batches:
        for z, label, index, view in zip(batch.z, batch.label, batch.index, batch.view, strict=True):
            pixels, *expected = images[row]
            assert [label, index, view] == expected
            feature = base.encode_image(pixels.unsqueeze(0)).feature
            torch.testing.assert_close(z, torch.nn.functional.normalize(feature[0], dim=-1), rtol=1e-5, atol=1e-6)
            row += 1
    assert row == len(images) == 30


@pytest.mark.parametrize("workers", [0, 2])
def test_draws_that_follow_are_the_same_with_and_without(root, base, workers):
    def draws(files):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
        encoded(base, views(root), files, num_workers=workers)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    assert draws(None) == draws(store(root)) == draws(store(root))


# Shared


def test_more_views_need_only_those_that_are_new(root, base):
    encoded(base, views(root, num_views=2), store(root))
    four, num = encoded(base, views(root, num_views=4), store(root))
    assert num == 20
    assert equal(four, encoded(base, views(root, num_views=4))[0])


def test_joint_features_serve_with_and_without_tokens(root, base):
    plain, _ = encoded(base, views(root), store(root), with_tokens=False)
    assert len(stored(root)) == 3
    with_tokens, num = encoded(base, views(root), store(root))
    assert num == 30
    assert len(stored(root)) == 6
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, with_tokens, strict=True))
    assert encoded(base, views(root), store(root), with_tokens=False)[1] == 0


def test_tokens_of_the_first_views_alone(root, base):
    """The other views are the same without; tokens that are not wanted are neither stored nor asked for."""
    whole, _ = encoded(base, views(root))
    first = [row[:3] + row[3::3] for row in whole]  # all of view 0, and the joint features of views 1 and 2
    for num_made in (30, 0):
        rows, num = encoded(base, views(root), store(root), token_views=1)
        assert num == num_made
        assert equal(rows, first)
    assert len(stored(root)) == 3 + 1
    assert encoded(base, views(root), store(root))[1] == 20  # now of the others as well
    batch = next(encode_views(base, views(root), CPU, 4, 0, "", token_views=1))
    assert (len(batch.z), len(batch.cls), len(batch.tokens)) == (12, 4, 4)
    assert torch.equal(batch.tokens, whole[0][2])


def test_room_on_the_disk_is_asked_for_what_is_stored(root, base, capsys):
    one_view = 10 * token_bytes(base.tower) / 2**30
    encoded(base, views(root), store(root, 1.5 * one_view), token_views=1)
    assert "are not stored" not in capsys.readouterr().out
    encoded(base, views(root), store(root, 1.5 * one_view), token_views=2)
    assert "Patch tokens of 10 images are not stored" in capsys.readouterr().out


def test_another_seed_shares_the_images_as_they_are(root, base):
    encoded(base, views(root, seed=1), store(root))
    other, num = encoded(base, views(root, seed=2), store(root))
    assert num == 20
    assert equal(other, encoded(base, views(root, seed=2))[0])


def test_data_that_moves_keeps_its_features(root, base, tmp_path):
    encoded(base, views(root), store(root))
    moved = root.rename(tmp_path / "moved")
    assert encoded(base, views(moved), store(moved))[1] == 0


# Never those of something else


def _other_clip(root, base, small_clip):
    other = CountingBase(tiny_capt.make_base(small_clip))
    with torch.no_grad():
        other.tower.clip.visual.proj[0, 0] += 1
    return other, views(root), 4


def _touched(root, base, small_clip):
    os.utime(items(root)[9].impath, (1, 1))
    return base, views(root), 4


def _fewer(root, base, small_clip):
    images = views(root)
    return base, ViewDataset(images.data_source, 3, TEST, TRAIN, read_image, 1, images=range(9)), 4


def _other_transforms(root, base, small_clip):
    return base, views(root, test=transforms.Compose([*TEST.transforms, lambda x: 2 * x]), train=TEST), 4


def _other_batches(root, base, small_clip):
    return base, views(root), 5


@pytest.mark.parametrize("change", [_other_clip, _touched, _fewer, _other_transforms, _other_batches])
def test_a_change_makes_other_features(root, base, small_clip, change):
    encoded(base, views(root), store(root))
    encoder, images, batch_size = change(root, base, small_clip)
    rows, num = encoded(encoder, images, store(root), batch_size)
    assert num == len(images)
    assert equal(rows, encoded(encoder, images, None, batch_size)[0])


def test_other_threads_round_for_themselves(root, base, monkeypatch):
    names = [FeatureNames.of(base.tower, views(root), str(root), 4, CPU).name(range(4), 0)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    names.append(FeatureNames.of(base.tower, views(root), str(root), 4, CPU).name(range(4), 0))
    assert names[0] != names[1]


def test_another_way_of_reading_makes_other_features(root, base):
    """As the file is stored, or as it is meant to be shown."""

    def name(reader):
        images = views(root)
        images.read_image = reader
        return FeatureNames.of(base.tower, images, str(root), 4, CPU).name(range(4), 0)

    assert name(pictures.read_shown) == name(pictures.read_shown)
    assert name(pictures.read_stored) != name(pictures.read_shown)


def test_a_resnet_keeps_what_stands_in_for_its_class_token(root, tmp_path):
    torch.save(tiny_capt.tiny.resnet_state(), tmp_path / "resnet.pt")
    base = CountingBase(tiny_capt.make_base(tmp_path / "resnet.pt"))
    first, _ = encoded(base, views(root), store(root))
    again, num = encoded(base, views(root), store(root))
    assert num == 0
    assert equal(again, first)
    feature, cls = again[0][:2]
    assert len(again[0]) == 3 * 2  # of each view the joint feature and what stands in for the class token, no patches
    assert token_bytes(base.tower) == cls[0].nbytes != feature[0].nbytes


def test_a_digest_is_remembered_until_a_weight_changes(small_clip):
    base = tiny_capt.make_base(small_clip)
    visual = base.prompted.clip.visual
    first = tower_digest(visual), base.digest()
    assert (tower_digest(visual), base.digest()) == first
    with torch.no_grad():
        visual.proj[0, 0] += 1
    second = tower_digest(visual), base.digest()
    visual.proj.data = visual.proj.data.clone() * 2
    third = tower_digest(visual), base.digest()
    assert len({*first, *second, *third}) == 6
    fresh = tiny_capt.make_base(small_clip)
    assert (tower_digest(fresh.prompted.clip.visual), fresh.digest()) == first


def test_tuned_towers_store_nothing(root, base):
    tuned = DeepPromptedCLIP(base.tower, LearnedPrompts(visual=torch.zeros(2, base.tower.width)))
    assert tuned.tower is None
    assert CountingBase(tuned).tower is None
    encoded(CountingBase(tuned), views(root), store(root))
    assert not stored(root)


class Silent:
    """A transform whose text is an address in memory."""

    def __call__(self, image):
        return TEST(image)


def test_a_transform_that_does_not_say_what_it_does_is_not_stored(root, base, capsys):
    encoded(base, views(root, train=Silent()), store(root))
    assert "a transform does not say what it does" in capsys.readouterr().out
    assert not stored(root)
    encoded(base, views(root, num_views=1, train=Silent()), store(root))  # which needs no training transform
    assert len(stored(root)) == 2
