"""Few-shot sampling, loaders, samplers, transforms."""

import pickle
import random

import compat

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.samplers import build_sampler
from dassl.data.seeding import SeededIndex
from dassl.data.transforms.transforms import build_transform
from dassl_toy import toy_cfg
from PIL import Image

pytestmark = pytest.mark.skipif(compat.DASSL != "bundled", reason="an installed Dassl is in use")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.arange(10 * 14 * 3, dtype=np.uint8).reshape(10, 14, 3)).save(path)
    return str(path)


def items_of(image, sizes, labels=None, domains=1):
    """``sizes[i]`` items of each label; ``number`` counts them."""
    labels = range(len(sizes)) if labels is None else labels
    items = []
    for label, size in zip(labels, sizes, strict=True):
        for _ in range(size):
            items.append(Datum(image, label, len(items) % domains, f"class {label}"))
            items[-1].number = len(items) - 1
    return items


def numbers(items):
    return [item.number for item in items]


def ints(text):
    return [int(x) for x in text.split()]


# Drawn by Dassl 0.6.3 itself; the same on Python 3.6 to 3.13.
FEW_SHOT = [
    (1, [30, 10, 3, 100], [6, 2, 5, 20], 4, "4 18 27 25 31 34 39 33 40 41 42 140 100 103 126",
     "3 1 0 4 6 7 8 11 9 12 27 21 20 16"),
    (2, [30, 10, 3, 100], [6, 2, 5, 20], 4, "27 1 2 11 32 34 38 37 40 41 42 70 120 47 117",
     "5 1 3 2 6 7 11 10 12 9 29 21 14 13"),
    (3, [30, 10, 3, 100], [6, 2, 5, 20], 4, "7 18 17 4 35 37 31 34 40 41 42 44 103 76 113",
     "1 5 3 2 6 7 12 11 9 8 20 17 29 25"),
    (1, [30, 20, 50], [6, 6, 6], 16,
     "4 18 27 25 24 2 8 3 15 14 21 12 6 22 19 0 42 43 30 44 38 41 49 33 39 31 35 47 45 37 46 34 50 74 93 63 77 51 83 "
     "64 78 81 85 92 72 88 86 79", "2 0 3 5 11 6 7 8 17 14 12 16"),
    (1, [30, 20, 50], [6, 6, 6], 1, "4 48 98", "0 8 12"),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "train_sizes", "val_sizes", "shots", "train", "val"), FEW_SHOT)
def test_few_shot_golden(image, capsys, seed, train_sizes, val_sizes, shots, train, val):
    base = DatasetBase(train_x=items_of(image, [1]))
    train_items, val_items = items_of(image, train_sizes), items_of(image, val_sizes)
    random.seed(seed)
    drawn = base.generate_fewshot_dataset(train_items, num_shots=shots)
    drawn_val = base.generate_fewshot_dataset(val_items, num_shots=min(shots, 4))
    assert numbers(drawn) == ints(train)
    assert numbers(drawn_val) == ints(val)
    assert capsys.readouterr().out == f"Creating a {shots}-shot dataset\nCreating a {min(shots, 4)}-shot dataset\n"


def test_few_shot_several_sources_in_one_call(image, capsys):
    base = DatasetBase(train_x=items_of(image, [1]))
    random.seed(1)
    drawn = base.generate_fewshot_dataset(items_of(image, [5, 5]), items_of(image, [5, 5]), num_shots=2)
    assert [numbers(part) for part in drawn] == [[1, 0, 7, 5], [3, 4, 8, 9]]
    assert capsys.readouterr().out == "Creating a 2-shot dataset\n"


def test_few_shot_goes_by_first_appearance_of_a_label(image):
    base = DatasetBase(train_x=items_of(image, [1]))
    items = items_of(image, [5, 5])
    random.seed(1)
    drawn = base.generate_fewshot_dataset(items[5:] + items[:5], num_shots=2)
    assert numbers(drawn) == [6, 5, 2, 0]
    assert [item.label for item in drawn] == [1, 1, 0, 0]


def test_few_shot_repeat(image):
    base = DatasetBase(train_x=items_of(image, [1]))
    random.seed(1)
    drawn = base.generate_fewshot_dataset(items_of(image, [3, 10]), num_shots=5, repeat=True)
    assert numbers(drawn) == ints("0 2 2 0 1 10 12 9 11 4")


def test_no_shots_returns_the_sources_and_draws_nothing(image, capsys):
    base = DatasetBase(train_x=items_of(image, [1]))
    a, b = items_of(image, [2]), items_of(image, [2])
    state = random.getstate()
    assert base.generate_fewshot_dataset(a) is a
    assert base.generate_fewshot_dataset(a, b) == (a, b)
    assert random.getstate() == state
    assert capsys.readouterr().out == ""


def test_datum(image):
    datum = pickle.loads(pickle.dumps(Datum(image, 3, 1, "cat")))
    assert vars(datum) == {"_impath": image, "_label": 3, "_domain": 1, "_classname": "cat"}
    assert type(datum).__module__ == "dassl.data.datasets.base_dataset"
    with pytest.warns(UserWarning, match='No file found at "nowhere"'), pytest.raises(AssertionError):
        Datum("nowhere")
    with pytest.raises(AssertionError):
        Datum(3)


def test_dataset_base(image):
    base = DatasetBase(train_x=items_of(image, [1, 1], labels=[2, 0]), test=[])
    assert base.num_classes == 3
    assert base.lab2cname == {0: "class 0", 2: "class 2"}
    assert base.classnames == ["class 0", "class 2"]
    assert list(base.split_dataset_by_label(base.train_x)) == [2, 0]
    with pytest.raises(ValueError, match="unknown domain 'x'"):
        base.is_input_domain_valid(["x"])


# First epoch with workers=0 and three epochs with a worker as Dassl 0.6.3 gives them for torch.manual_seed(1).
ORDER = [[[5, 1, 3, 4], [0, 2, 9, 10]], [[6, 2, 8, 9], [5, 0, 3, 4]], [[2, 9, 0, 10], [6, 3, 1, 4]]]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_order_is_dassls_for_any_number_of_workers(image, num_workers):
    cfg = get_cfg_default()
    cfg.DATALOADER.NUM_WORKERS = num_workers
    cfg.INPUT.SIZE = (8, 8)
    tfm = build_transform(cfg, choices=["random_resized_crop"])
    torch.manual_seed(1)
    loader = build_data_loader(cfg, "RandomSampler", items_of(image, [5, 6]), batch_size=4, tfm=tfm, is_train=True)
    assert [[batch["index"].tolist() for batch in loader] for _ in range(3)] == ORDER


def test_augmentation_does_not_depend_on_workers_and_changes_each_epoch(image):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.CUTOUT_LEN = (8, 8), 2
    tfm = build_transform(cfg, choices=["random_resized_crop", "random_translation", "cutout", "gaussian_noise"])
    seen = []
    for num_workers in (0, 1, 2):
        cfg.DATALOADER.NUM_WORKERS = num_workers
        torch.manual_seed(1)
        loader = build_data_loader(cfg, "RandomSampler", items_of(image, [5, 6]), batch_size=4, tfm=tfm, is_train=True)
        seen.append([torch.cat([batch["img"] for batch in loader]) for _ in range(2)])
    for epoch in range(2):
        assert torch.equal(seen[0][epoch], seen[1][epoch])
        assert torch.equal(seen[0][epoch], seen[2][epoch])
    assert not torch.equal(seen[0][0], seen[0][1])
    flat = seen[0][0].flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)  # the same image eight times, each augmented in its own way


def test_augmentation_leaves_the_random_states_of_the_process_alone(image):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.CUTOUT_LEN = (8, 8), 2
    tfm = build_transform(cfg, choices=["random_resized_crop", "random_translation", "cutout"])
    wrapper = DatasetWrapper(cfg, items_of(image, [2]), transform=tfm, is_train=True)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = wrapper[SeededIndex(0, 7)]
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(first["img"], wrapper[SeededIndex(0, 7)]["img"])
    assert not torch.equal(first["img"], wrapper[SeededIndex(0, 8)]["img"])
    assert type(first["index"]) is int


def test_seeded_index_is_an_int_that_survives_pickling():
    index = pickle.loads(pickle.dumps(SeededIndex(3, 2**63 + 5)))
    assert index == 3
    assert index.seed == 2**63 + 5
    assert ["a", "b", "c", "d"][index] == "d"


def test_wrapper_keys(image):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = (8, 8), ("normalize",)
    cfg.DATALOADER.RETURN_IMG0 = True
    tfm = build_transform(cfg, is_train=False)
    item = DatasetWrapper(cfg, items_of(image, [2]), transform=[tfm, tfm])[1]
    assert list(item) == ["label", "domain", "impath", "index", "img", "img2", "img0"]
    assert item["img0"].shape == (3, 8, 8)
    cfg.DATALOADER.K_TRANSFORMS = 2
    views = DatasetWrapper(cfg, items_of(image, [2]), transform=tfm, is_train=True)[0]["img"]
    assert isinstance(views, list)
    assert len(views) == 2
    with pytest.raises(ValueError, match="Cannot augment the image 2 times because transform is None"):
        DatasetWrapper(cfg, items_of(image, [2]), is_train=True)
    assert DatasetWrapper(cfg, items_of(image, [2]))[0]["img"].size == (14, 10)


def test_last_batch_is_dropped_only_if_there_is_a_full_one(image):
    cfg = get_cfg_default()
    cfg.DATALOADER.NUM_WORKERS = 0
    lengths = [
        len(build_data_loader(cfg, "RandomSampler", items_of(image, [size]), batch_size=4, is_train=is_train))
        for size, is_train in [(6, True), (3, True), (6, False)]
    ]
    assert lengths == [1, 1, 2]


def test_data_manager_summary(tmp_path, capsys):
    dm = DataManager(toy_cfg(tmp_path))
    assert capsys.readouterr().out == (
        "Loading dataset: CompatToy\n"
        "Building transform_train\n"
        "+ random resized crop (size=(8, 8), scale=(0.08, 1.0))\n"
        "+ random flip\n"
        "+ to torch tensor of range [0, 1]\n"
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])\n"
        "Building transform_test\n"
        "+ resize the smaller edge to 8\n"
        "+ 8x8 center crop\n"
        "+ to torch tensor of range [0, 1]\n"
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])\n"
        "---------  ---------\n"
        "Dataset    CompatToy\n"
        "# classes  3\n"
        "# train_x  23\n"
        "# val      6\n"
        "# test     23\n"
        "---------  ---------\n"
    )
    batch = next(iter(dm.test_loader))
    assert batch["img"].shape == (23, 3, 8, 8)
    assert batch["label"].dtype == torch.int64
    assert isinstance(batch["impath"], list)
    assert (dm.num_classes, dm.num_source_domains, dm.lab2cname[2]) == (3, 0, "cat")
    assert dm.train_loader_u is None


def test_transforms_messages(capsys):
    cfg = get_cfg_default()
    with pytest.raises(AssertionError, match="sharpen"):
        build_transform(cfg, choices=["sharpen"])
    with pytest.raises(NotImplementedError, match="randaugment2 is not part of the bundled Dassl; install Dassl"):
        build_transform(cfg, choices=["randaugment2"])
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None
    assert capsys.readouterr().out == "Note: no transform is applied!\n"


def test_every_training_step_in_its_fixed_order(capsys):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (16, 24)
    names = ["instance_norm", "gaussian_noise", "normalize", "cutout", "gaussian_blur", "randomgrayscale",
             "colorjitter", "random_flip", "random_crop", "random_translation", "center_crop"]  # fmt: skip
    tfm = build_transform(cfg, choices=names)
    assert capsys.readouterr().out.splitlines() == [
        "Building transform_train",
        "+ random translation",
        "+ random crop (padding = 4)",
        "+ random flip",
        "+ color jitter (brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)",
        "+ random gray scale",
        "+ gaussian blur (kernel=21)",
        "+ to torch tensor of range [0, 1]",
        "+ cutout (n_holes=1, length=16)",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "+ gaussian noise (mean=0.0, std=0.15)",
        "+ instance normalization",
    ]
    image = tfm(Image.new("RGB", (30, 30), (10, 20, 200)))
    assert image.shape == (3, 16, 24)
    assert image.mean((1, 2)).abs().max() < 1e-5


def test_cutout_sets_one_square_to_zero():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.CUTOUT_LEN = (32, 32), 8
    image = build_transform(cfg, choices=["cutout"])(Image.new("RGB", (32, 32), (255, 255, 255)))
    rows, columns = torch.where(image[0] == 0)
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert len(rows) == area
    assert 16 <= area <= 64


def test_samplers(image):
    items = items_of(image, [9, 5, 2, 20], domains=4)
    domains = [item.domain for item in items]
    order = list(build_sampler("SeqDomainSampler", data_source=items, batch_size=8))
    assert len(order) == 72 // 2 - 4  # 9 images per domain give four batches of 8
    assert [domains[i] for i in order[:8]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(set(order)) == len(order)
    order = list(build_sampler("RandomDomainSampler", data_source=items, batch_size=8, n_domain=2))
    assert all(len({domains[i] for i in order[b : b + 8]}) == 2 for b in range(0, len(order), 8))
    labels = [item.label for item in items]
    order = list(build_sampler("RandomClassSampler", data_source=items, batch_size=8, n_ins=4))
    assert all(len({labels[i] for i in order[b : b + 4]}) == 1 for b in range(0, len(order), 4))
    with pytest.raises(ValueError, match="at least N_INS"):
        build_sampler("RandomClassSampler", data_source=items, batch_size=2, n_ins=4)
    with pytest.raises(ValueError, match="Unknown sampler type: Foo"):
        build_sampler("Foo")
