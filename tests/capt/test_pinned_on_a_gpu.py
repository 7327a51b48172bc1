"""Rows of main memory on their way to a real GPU: `pytest -m gpu`."""

import pytest
import tiny_capt
import torch

from trainers.capt.bank.entry_tokens import HostTokens
from trainers.capt.run.feature_cache import CachedLoader, FeatureCache, ViewBatch
from trainers.capt.run.pinned import gathered

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
GPU = torch.device("cuda")


def cache_of(num_images=64, num_views=2):
    rows = num_images * num_views
    index = torch.arange(num_images).repeat_interleave(num_views)
    z, cls, tokens = tiny_capt.unit(rows, 8), tiny_capt.unit(rows, 16).half(), tiny_capt.unit(rows, 49, 256).half()
    batch = ViewBatch(z, cls, tokens, index % 5, index, torch.arange(num_views).repeat(num_images))
    return FeatureCache(iter([batch]), num_views, num_images)


def test_batches_of_the_cache_come_pinned_and_as_they_are():
    cache = cache_of()
    on_cpu = [batch["features"] for batch in CachedLoader(cache, 8, 1)]
    loader = CachedLoader(cache, 8, 1, device=GPU)
    for _ in range(20):  # pinned places are used again while copies are under way
        sent = []
        for batch in loader:
            assert all(value.is_pinned() for value in vars(batch["features"]).values())
            sent.append(batch["features"].to(GPU))
        for one, other in zip(on_cpu, sent, strict=True):
            assert all(torch.equal(value, getattr(other, name).cpu()) for name, value in vars(one).items())


def test_tokens_of_entries_come_as_they_are():
    cache = cache_of()
    tokens = HostTokens(cache.rows.tokens, 2)
    source = tiny_capt.generator(0)
    for _ in range(50):
        place = torch.randint(-1, 64, (40,), generator=source)
        view = torch.randint(0, 2, (40,), generator=source)
        found, expected = tokens.take(place.to(GPU), view.to(GPU)), tokens.take(place, view)
        assert found.device.type == "cuda"
        assert torch.equal(found.cpu(), expected)
        assert not expected[place < 0].any()


def test_only_what_is_asked_for_is_pinned():
    values = torch.zeros(1000, 32)
    found = gathered(values, torch.tensor([3, 5]), GPU)
    assert found.is_pinned()
    assert found.shape == (2, 32)
    assert not values.is_pinned()
