"""The plan of memory: arithmetic by hand, tokens wherever they are, and the arithmetic against a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_capt
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bank.entry_tokens import EncodedTokens, HostTokens
from trainers.capt.run.feature_cache import CachedLoader, FeatureCache, ViewBatch
from trainers.capt.run.memory import bare_row_bytes, entry_bytes, memory_of, plan_memory, row_bytes
from trainers.capt.run.pinned import gathered

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30
VIT_B16 = SimpleNamespace(grid=14, width=768, dtype=torch.float16, embed_dim=512)


def plan(tower=VIT_B16, **changes):
    keys = {"num_images": 16_000, "num_classes": 1000, "wanted_views": 4, "token_views": 4}
    keys |= {"bank_views": 1, "num_bank_images": None}
    return plan_memory(tower, **{**keys, "max_gigabytes": 8.0, "is_adapted": True, **changes})


# By hand


def test_16_shot_imagenet_on_a_vit_b16():
    """16,000 images, 197 tokens of 768 halves; it fits 24 GB of GPU memory and 32 GB of main memory."""
    row = 197 * 768 * 2 + 512 * 4 + 3 * 8
    assert row_bytes(VIT_B16) == row == 304_664
    found = plan()
    assert found.needed_bytes == 4 * 16_000 * row  # 18.2 GB
    assert 18.1 < found.needed_bytes / GB < 18.2
    assert (found.cached_views, found.tokens_in) == (1, "cache")
    assert found.cache_bytes == 16_000 * row <= 8 * GB
    assert found.token_bytes == 16_000 * 196 * 768 * 2
    assert found.bank_bytes == 16_000 * (512 * 4 + 768 * 6 + 16 * 32 * 8 + 7 * 8 + 3 * 4) + 4 * 1000**2
    assert found.goes_to_device(24 * GB)
    assert not found.goes_to_device(16 * GB)
    clip = 2 * 150_000_000
    assert found.bank_bytes + found.token_bytes + clip < 24 * GB / 4
    assert found.cache_bytes + clip < 32 * GB


def test_half_of_imagenet_keeps_three_views():
    assert plan(num_images=8000).cached_views == 3


def test_everything_fits_a_small_run():
    found = plan(num_images=800, num_classes=50)
    assert (found.cached_views, found.tokens_in) == (4, "cache")


@pytest.mark.parametrize(
    ("changes", "views", "tokens_in"),
    [
        ({"num_bank_images": 1_281_167}, 1, "images"),  # a full-set bank: 359 GB of patch tokens
        ({"num_bank_images": 1_000}, 1, "bank"),
        ({"wanted_views": 0}, 0, "bank"),  # no cache: 4.5 GB
        ({"wanted_views": 0, "max_gigabytes": 4.0}, 0, "images"),
        ({"max_gigabytes": 4.0}, 0, "images"),
        ({"bank_views": 2}, 1, "images"),  # the second view is not cached, and 9 GB more do not fit
        ({"bank_views": 2, "num_images": 800}, 4, "cache"),
        ({"max_gigabytes": -1.0}, 0, "images"),
    ],
)
def test_tokens_are_where_there_is_room(changes, views, tokens_in):
    found = plan(**changes)
    assert (found.cached_views, found.tokens_in) == (views, tokens_in)
    copied = found.token_bytes if tokens_in == "bank" else 0
    assert found.cache_bytes + copied <= max(0, changes.get("max_gigabytes", 8.0)) * GB


def test_a_resnet_has_no_patch_tokens():
    """RN50: its attention pool reads 2,048 numbers, which stand in for a class token."""
    pool = torch.nn.ParameterDict({"positional_embedding": torch.nn.Parameter(torch.zeros(50, 2048))})
    clip = SimpleNamespace(visual=SimpleNamespace(attnpool=pool))
    resnet = SimpleNamespace(grid=None, width=None, dtype=torch.float16, embed_dim=1024, clip=clip)
    assert row_bytes(resnet) == 2 * 2048 + 4 * 1024 + 24
    assert (plan(resnet).cached_views, plan(resnet).token_bytes) == (4, 0)


def test_what_a_run_says():
    first, second = plan().lines(pair_bytes=2**29, capacity=24 * GB)
    assert first == (
        "Memory: feature cache 4.54 GB in main memory (1 of 4 views); bank at most 0.16 GB, its patch tokens 4.49 GB "
        "in the cache and on the GPU; pairs of classes 0.50 GB"
    )
    assert second == "Memory: at most 5.15 GB of it on the GPU"
    assert "in the cache;" in plan().lines(0, None)[0]
    assert "encoded again when they are retrieved" in plan(num_bank_images=10**6).lines(0, None)[0]
    apart = plan(num_bank_images=1000)  # a bank of other images than those in the cache
    assert "its patch tokens 0.28 GB in main memory and on the GPU;" in apart.lines(0, 24 * GB)[0]
    assert "its patch tokens 0.28 GB in main memory;" in apart.lines(0, GB)[0]
    assert apart.lines(0, GB)[1] == f"Memory: at most {apart.bank_bytes / GB:.2f} GB of it on the GPU"
    both = apart.bank_bytes + apart.token_bytes
    assert apart.lines(0, None)[1] == f"Memory: at most {both / GB:.2f} GB of it on the CPU besides"
    assert memory_of(torch.device("cpu")) is None


@pytest.mark.parametrize("changes", [{}, {"wanted_views": 0}, {"num_bank_images": 1_281_167}])
def test_patch_tokens_that_nobody_reads_are_nowhere(changes):
    """Without experts there is no adapter; the bank keeps layouts, and a GPU none of the 4.5 GB."""
    found = plan(is_adapted=False, **changes)
    assert (found.tokens_in, found.token_bytes, found.goes_to_device(24 * GB)) == ("nowhere", 0, False)
    assert found.cached_views == plan(**changes).cached_views
    first, second = found.lines(pair_bytes=0, capacity=24 * GB)
    assert "GB, without patch tokens, which experts alone read; pairs of classes 0.00 GB" in first
    assert second == f"Memory: at most {found.bank_bytes / GB:.2f} GB of it on the GPU"


def test_views_without_tokens_take_next_to_nothing():
    """Without experts the bank reads plain views alone: all four of 16-shot ImageNet are kept where one was."""
    found = plan(is_adapted=False, token_views=1)
    row, bare = 304_664, 512 * 4 + 3 * 8
    assert (found.cached_views, found.cache_bytes) == (4, 16_000 * (row + 3 * bare))
    assert found.needed_bytes == found.cache_bytes
    assert "feature cache 4.63 GB in main memory (4 of 4 views)" in found.lines(0, None)[0]
    assert plan(is_adapted=False, token_views=1, max_gigabytes=4.5).cached_views == 0
    assert plan(is_adapted=False, token_views=1, max_gigabytes=4.62).cached_views == 3


@given(
    st.integers(1, 40),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 60)),
    st.floats(0, 40),
    st.booleans(),
)
def test_as_many_views_as_fit_and_never_more_than_there_is(images, wanted, read, bank_views, others, rows, is_adapted):
    """Against trying one more view after the other; tokens of the bank count with those of the cache."""
    budget = int(rows * row_bytes(VIT_B16))
    sizes = {"num_images": images, "wanted_views": wanted, "token_views": min(read, wanted), "bank_views": bank_views}
    room = {"num_bank_images": others, "max_gigabytes": budget / GB, "is_adapted": is_adapted}
    found = plan(**sizes, **room)
    taken = [images * (row_bytes(VIT_B16) if view < read else bare_row_bytes(VIT_B16)) for view in range(wanted)]
    fit = [num for num in range(wanted + 1) if sum(taken[:num]) <= budget]
    assert found.cached_views == max(fit)
    assert found.cache_bytes == sum(taken[: found.cached_views])
    assert found.needed_bytes == sum(taken)
    copied = found.token_bytes if found.tokens_in == "bank" else 0
    assert found.cache_bytes + copied <= budget
    if found.tokens_in == "cache":
        assert others is None
        assert bank_views <= min(found.cached_views, read)


# The sizes are those of the tensors


def _views(base, num_images=6, num_views=2):
    z, cls, tokens = tiny_capt.encode(base, tiny_capt.images(num_images * num_views))
    index = torch.arange(num_images).repeat_interleave(num_views)
    return ViewBatch(
        z, cls.contiguous(), tokens.contiguous(), index % 3, index, torch.arange(num_views).repeat(num_images)
    )


def test_rows_and_entries_take_what_the_plan_says(base, bank):
    base.set_classes(tiny_capt.CLASSES)
    cache = FeatureCache(iter([_views(base)]), 2, 6)
    assert sum(value.nbytes for value in vars(cache.rows).values()) == 12 * row_bytes(base.prompted)
    entries = bank.entries.without_tokens()
    entries |= {"place": bank.entries.place[:-1], "keys": bank.filed.keys, "entry": bank.filed.entry}
    assert sum(value.nbytes for value in entries.values()) == len(bank) * entry_bytes(base.prompted)


def test_a_bank_holds_everything_once(base):
    """All that a bank's objects reach and that grows with its entries is in the plan: no second copy of a look."""
    bank = tiny_capt.make_bank(base, num_images=60)
    bank.entries = replace(bank.entries, tokens=bank.entries.tokens[:, :0].clone())
    holders = [bank, bank.entries, bank.filed, bank.likeness]
    held = {id(v): v for holder in holders for v in vars(holder).values() if isinstance(v, torch.Tensor)}
    of_entries = [value for value in held.values() if value.dim() and len(bank) <= len(value) < len(bank) + 2]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in of_entries}
    padding = sum(value[-1].nbytes for value in bank.entries.named().values())
    assert sum(storages.values()) == len(bank) * entry_bytes(base.prompted) + padding


@pytest.mark.parametrize("taken_once", [True, False])
def test_a_cache_keeps_tokens_of_the_views_that_are_read(base, taken_once):
    """The other views are there as they were; where their tokens would be asked for there are none."""
    batch = _views(base, num_images=6, num_views=3)
    whole = FeatureCache(iter([batch]), 3, 6)
    read = batch.view < 2
    parts = [replace(batch, cls=batch.cls[read], tokens=batch.tokens[read])]
    cache = FeatureCache(iter(parts), 3, 6 if taken_once else None, token_views=2)
    taken = 12 * row_bytes(base.prompted) + 6 * bare_row_bytes(base.prompted)
    assert sum(value.nbytes for value in vars(cache.rows).values()) == taken
    for num_views in (1, 2):
        for own, other in zip(cache.views(num_views, 4), whole.views(num_views, 4), strict=True):
            assert all(torch.equal(getattr(own, name), value) for name, value in vars(other).items())
    (own,), (other,) = cache.views(3), whole.views(3)
    assert own.cls is own.tokens is None
    assert all(torch.equal(getattr(own, name), getattr(other, name)) for name in ("z", "label", "index", "view"))
    with pytest.raises(AssertionError, match="a cache of 3 views has not 4"):
        next(cache.views(4))


def test_what_is_bound_for_a_gpu_is_gathered_in_pinned_memory(monkeypatch):
    """Only as much as is asked for; and elsewhere nothing is pinned, which would need a GPU."""
    own, pinned = torch.empty, []

    def empty(*size, pin_memory=False, **keys):
        pinned.append((size, pin_memory))
        return own(*size, **keys)

    monkeypatch.setattr(torch, "empty", empty)
    values, row = tiny_capt.unit(5, 3, 2).half(), torch.tensor([4, 0, 4])
    assert torch.equal(gathered(values, row, torch.device("cpu")), values[row])
    assert not pinned
    assert torch.equal(gathered(values, row, torch.device("cuda")), values[row])
    assert pinned == [((3, 3, 2), True)]


def test_a_step_on_a_gpu_gets_pinned_rows_and_the_same(base, monkeypatch):
    """Of the loader, and of the bank's patch tokens; both name the device that they are for."""
    asked = []

    def noted(values, row, device):
        asked.append(device.type)
        return values[row]

    monkeypatch.setattr("trainers.capt.run.feature_cache.gathered", noted)
    cache = FeatureCache(iter([_views(base)]), 2, 6)
    batches = [
        [batch["features"] for batch in CachedLoader(cache, 2, 1, True, torch.device(device))]
        for device in ("cpu", "cuda")
    ]
    assert asked == 3 * 6 * ["cpu"] + 3 * 6 * ["cuda"]
    for one, other in zip(*batches, strict=True):
        assert all(torch.equal(getattr(one, name), value) for name, value in vars(other).items())


def test_memory_taken_at_once_holds_the_same_rows(base):
    batch = _views(base)
    parts = [batch.each(lambda value, part=part: value[part]) for part in (slice(0, 4), slice(4, 10), slice(10, 12))]
    joined, filled = FeatureCache(iter(parts), 2).rows, FeatureCache(iter(parts), 2, 6).rows
    assert all(torch.equal(getattr(joined, name), value) for name, value in vars(filled).items())
    with pytest.raises(AssertionError, match="4 rows came, not 12"):
        FeatureCache(iter(parts[:1]), 2, 6)


# Tokens out of the cache, or encoded again, are the bank's own


@pytest.fixture
def banks(base):
    """A bank that holds its tokens, and its like that finds them in the cache and in the images."""
    base.set_classes(tiny_capt.CLASSES)
    batch = _views(base)
    probs = (5 * torch.rand(12, len(tiny_capt.CLASSES), generator=tiny_capt.generator(4))).softmax(dim=-1)
    paths = ["a", "b", "c", "b", "d", "e"]  # one image twice

    def build(**tokens):
        about = {"index": batch.index, "view": batch.view, "cls": batch.cls, **tokens}
        return ConfusionBank.build(tiny_capt.CLASSES, paths, [JudgedViews.of(probs, batch.label, batch.z, **about)])

    own, cached, encoded = build(tokens=batch.tokens), build(), build()
    cached.token_source = HostTokens(batch.tokens, 2)
    asked = []

    def encode(pairs):
        asked.append(pairs)
        return torch.stack([batch.tokens[2 * place + view] for place, view in pairs])

    encoded.token_source = EncodedTokens(encode)
    return own, cached, encoded, asked


def test_tokens_are_the_same_wherever_they_are(banks):
    own, cached, encoded, asked = banks
    entry = torch.tensor([[0, len(own)], [len(own) - 1, 0], [1, len(own)]])  # padding, and one twice
    assert own.has_tokens
    assert cached.has_tokens
    assert torch.equal(own.tokens_of(entry), own.entries.tokens[entry])
    assert torch.equal(cached.tokens_of(entry), own.tokens_of(entry))
    assert torch.equal(encoded.tokens_of(entry), own.tokens_of(entry))
    assert len(asked[0]) == 3
    padding = torch.tensor([len(own)])
    assert not cached.tokens_of(padding).any()
    assert not encoded.tokens_of(padding).any()


def test_tokens_can_be_brought_into_the_bank(banks):
    own, cached, _, _ = banks
    cached.hold_tokens(chunk=3)
    assert cached.token_source is None
    assert torch.equal(cached.entries.tokens, own.entries.tokens)


def test_a_bank_that_was_stored_has_no_tokens(banks, tmp_path):
    _, cached, _, _ = banks
    cached.save(tmp_path)
    loaded = ConfusionBank.load(tmp_path)
    assert not loaded.has_tokens
    assert set(loaded.state_dict()) == set(cached.state_dict())
    assert "place" not in loaded.state_dict()
    assert cached.to("cpu").token_source is cached.token_source


# A real process

PEAK = """
import json, resource, sys
from types import SimpleNamespace
import torch
from yacs.config import CfgNode
sys.path[:0] = [{root!r}, {root!r} + "/tests/capt", {root!r} + "/tests/trainers"]
import compat
import tiny_capt
from trainers.capt.bank.confusion_bank import ConfusionBank, JudgedViews
from trainers.capt.bank.entry_tokens import HostTokens
from trainers.capt.run.feature_cache import ViewEncoder, cache_where_it_fits
from trainers.capt.run.memory import plan_memory

def peak():  # of this program alone: ru_maxrss holds that of the process which started it as well
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024

C, PER_CLASS, VIEWS = 1000, 4, {views}
names = [f"class {{c}}" for c in range(C)]
base = tiny_capt.make_base({clip!r})
base.set_classes(names)
source = [SimpleNamespace(impath=str(i), label=i // PER_CLASS) for i in range(C * PER_CLASS)]
def read(path):
    return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(int(path)))
encode = ViewEncoder(lambda x: x, lambda x: x + torch.rand(()), read, 1, torch.device("cpu"), 50, 0)
for _ in encode(base, source[:50], VIEWS, ""):  # what torch itself needs to run
    pass
plan = plan_memory(base.prompted, num_images=len(source), num_classes=C, wanted_views=VIEWS, token_views=VIEWS,
                   bank_views=1, num_bank_images=None, max_gigabytes={gigabytes}, is_adapted=True)
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
cache = cache_where_it_fits(lambda views: encode(base, source, views, ""), len(source), plan, {gigabytes})
of_cache = peak() - before
def judged():
    for batch in cache.views(1):
        probs = base.logits(batch.z).softmax(dim=-1)
        yield JudgedViews.of(probs, batch.label, batch.z, index=batch.index, view=batch.view, cls=batch.cls)
bank = ConfusionBank.build(names, [item.impath for item in source], judged())
bank.token_source = HostTokens(cache.rows.tokens, cache.num_views)
print(json.dumps({{"cache": of_cache, "both": peak() - before, "entries": len(bank), "views": plan.cached_views,
                   "plan_cache": plan.cache_bytes, "plan_both": plan.cache_bytes + plan.bank_bytes}}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process as Linux tells it")
@pytest.mark.parametrize(("gigabytes", "views"), [(8.0, 16), (0.3, 8)])
def test_a_thousand_classes_take_what_the_plan_says(small_clip, gigabytes, views):
    """1,000 classes x 4 images: the peak of resident memory beyond the start, to 10 %."""
    code = PEAK.format(root=str(ROOT), clip=str(small_clip), views=16, gigabytes=gigabytes)
    # One arena, and memory given back at once: what is measured is what the run takes, not what malloc keeps.
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    print(found)
    assert found["views"] == views
    assert found["entries"] > 3900
    assert found["cache"] == pytest.approx(found["plan_cache"], rel=0.1)
    assert found["both"] == pytest.approx(found["plan_both"], rel=0.1)
    if gigabytes < 1:
        assert found["both"] < 1.1 * gigabytes * GB
