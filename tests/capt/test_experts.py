"""MGDE: routing, start from prompts and from CLIP's own network, and what may not change its result."""

import dataclasses

import pytest
import tiny_capt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch.nn.functional import normalize

from trainers.capt.method.experts import Expert, MultiGranularityDiscrepancyExpert, cosine_kmeans, discriminative, route
from trainers.capt.method.sample_miner import SampleSet
from trainers.capt.method.semantic_miner import PairSet

DIM = 16


def make_pairs(batch, places, seed=0, valid=None):
    valid = torch.ones(batch, places, dtype=torch.bool) if valid is None else valid
    features = tiny_capt.unit(2, batch, places, DIM, seed=seed) * valid[..., None]
    index = torch.zeros(batch, places, dtype=torch.long)
    return PairSet(index[:, 0], index, torch.zeros(batch, places), valid, features[0], features[1])


def make_samples(batch, k, seed=1, valid=None):
    valid = torch.ones(batch, k, dtype=torch.bool) if valid is None else valid
    features, corrections = tiny_capt.unit(2, batch, k, DIM, seed=seed) * valid[..., None]
    similarity = torch.rand(batch, k, generator=tiny_capt.generator(seed)) * valid
    index = torch.zeros(batch, k, dtype=torch.long)
    return SampleSet(tiny_capt.unit(batch, DIM, seed=seed + 7), features, corrections, similarity, valid, index, index)


@pytest.fixture
def expert():
    torch.manual_seed(0)
    expert = MultiGranularityDiscrepancyExpert(DIM, 2).eval()
    for parameter in expert.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return expert


# Routing


def test_route_by_hand():
    gates, weights = route(torch.tensor([[1.0, 2.0, 4.0]]).log(), 2)
    torch.testing.assert_close(gates, torch.tensor([[1 / 7, 2 / 7, 4 / 7]]))
    torch.testing.assert_close(weights, torch.tensor([[0, 1 / 3, 2 / 3]]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 5))
def test_routing_weights(seed, top_k, batch):
    gates, weights = route(torch.randn(batch, 3, generator=tiny_capt.generator(seed)), top_k)
    assert ((weights > 0).sum(dim=1) == top_k).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(batch))
    kept = gates.topk(top_k, dim=1).values
    torch.testing.assert_close(weights.topk(top_k, dim=1).values, kept / kept.sum(dim=1, keepdim=True))


# Starts


def test_kmeans_finds_what_scikit_learn_finds():
    centres = torch.eye(4)[:3]
    points = normalize(centres.repeat(10, 1) + 0.05 * torch.randn(30, 4, generator=tiny_capt.generator()), dim=-1)
    found = cosine_kmeans(points, 3, tiny_capt.generator(1))
    oracle = KMeans(3, n_init=3, random_state=0).fit(points.numpy())
    expected = normalize(torch.from_numpy(oracle.cluster_centers_).float(), dim=-1)
    assert sorted((found @ expected.t()).argmax(dim=1).tolist()) == [0, 1, 2]
    torch.testing.assert_close((found @ expected.t()).max(dim=1).values, torch.ones(3), rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 10))
def test_kmeans_gives_unit_vectors(seed, num_centroids, more):
    points = tiny_capt.unit(num_centroids + more, DIM, seed=seed)
    centroids = cosine_kmeans(points, num_centroids, tiny_capt.generator(seed))
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(num_centroids))


def test_kmeans_of_equal_points():
    points = tiny_capt.unit(1, DIM).expand(4, -1)
    centroids = cosine_kmeans(points, 3, tiny_capt.generator())
    torch.testing.assert_close(centroids, points[:3])


def test_tokens_near_the_mean_are_dropped():
    points = torch.tensor([[1.0, 0], [0.9, 0.435889894], [0.9, -0.435889894], [0, 1], [0, -1]])
    kept = discriminative(points)  # four of five; the first is the mean's own direction
    assert len(kept) == 4
    assert not (kept == points[0]).all(dim=1).any()


def test_semantic_expert_starts_from_prompts():
    expert = Expert(DIM, 8, 0.0)
    prompts = tiny_capt.unit(20, DIM)
    expert.start_from_prompts(prompts, 2, tiny_capt.generator())
    torch.testing.assert_close(expert[0].weight.norm(dim=1), torch.ones(8))
    centroids = cosine_kmeans(discriminative(prompts), 2, tiny_capt.generator())
    cosine = expert[0].weight.detach() @ centroids.t()
    assert cosine.argmax(dim=1).tolist() == [0, 1] * 4  # the hidden units share the centroids out


def test_sample_expert_starts_as_clips_own(base):
    mlp = base.prompted.clip.transformer.resblocks[-1].mlp
    expert = Expert(64, 256, 0.3).eval()
    assert expert.start_from_mlp(mlp)
    x = torch.randn(3, 64)
    torch.testing.assert_close(expert(x), mlp(x))
    assert not Expert(32, 128, 0.0).start_from_mlp(mlp)


# The whole expert


def test_nothing_moves_before_the_first_step():
    torch.manual_seed(0)
    expert = MultiGranularityDiscrepancyExpert(DIM, 2, gain=0).eval()
    z = tiny_capt.unit(4, DIM)
    for pairs in (None, make_pairs(4, 3)):
        for samples in (None, make_samples(4, 2)):
            assert torch.equal(expert(z, pairs, samples).z, z)


def test_corrections_by_hand():
    expert = MultiGranularityDiscrepancyExpert(2, 1, sharpness=2.0, gain=3.0, use_mixture=False)
    z = torch.tensor([[1.0, 0.0]])
    index = torch.zeros(1, 2, dtype=torch.long)
    corrections = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    similarity = torch.tensor([[1.0, 0.5]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    out = expert(z, None, SampleSet(z, corrections, corrections, similarity, valid, index, index))
    near, far = 1.0, torch.e ** (-2.0 * 0.5)  # exp(-b (1 - cos))
    moved = torch.tensor([[1 + 3 * far, 3 * near]])
    torch.testing.assert_close(out.z, normalize(moved, dim=-1))
    torch.testing.assert_close(out.evidence, torch.tensor([(near + far) / (1 + near + far)]))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_padded_places_never_matter(seed, batch, places, k):
    torch.manual_seed(seed)
    expert = MultiGranularityDiscrepancyExpert(DIM, 2).eval()
    for parameter in expert.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    source = tiny_capt.generator(seed)
    pairs = make_pairs(batch, places, seed, torch.rand(batch, places, generator=source) < 0.6)
    samples = make_samples(batch, k, seed + 1, torch.rand(batch, k, generator=source) < 0.6)
    z = tiny_capt.unit(batch, DIM, seed=seed + 2)
    expected = expert(z, pairs, samples)
    assert torch.isfinite(expected.z).all()
    torch.testing.assert_close(expected.z.norm(dim=-1), torch.ones(batch))
    fill = {name: getattr(pairs, name) + 9 * ~pairs.valid[..., None] for name in ("difference", "commonality")}
    sample_fill = {"features": samples.features - 5 * ~samples.valid[..., None]}
    sample_fill["corrections"] = samples.corrections + 3 * ~samples.valid[..., None]
    sample_fill["similarity"] = samples.similarity + 2 * ~samples.valid
    actual = expert(z, dataclasses.replace(pairs, **fill), dataclasses.replace(samples, **sample_fill))
    torch.testing.assert_close(actual.z, expected.z)
    torch.testing.assert_close(actual.evidence, expected.evidence)
    wide = dataclasses.replace(pairs, **{n: _longer(getattr(pairs, n)) for n in ("valid", "difference", "commonality")})
    more = {n: _longer(getattr(samples, n)) for n in ("features", "corrections", "similarity", "valid")}
    torch.testing.assert_close(expert(z, wide, dataclasses.replace(samples, **more)).z, expected.z)


def _longer(tensor):
    return torch.cat([tensor, torch.zeros_like(tensor[:, :1])], dim=1)


def test_order_does_not_matter(expert):
    pairs, samples, z = make_pairs(4, 3), make_samples(4, 5), tiny_capt.unit(4, DIM)
    expected = expert(z, pairs, samples).z
    order, batch = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    turned = dataclasses.replace(pairs, difference=pairs.difference[:, order], commonality=pairs.commonality[:, order])
    torch.testing.assert_close(expert(z, turned, samples).z, expected)
    reverse = {n: getattr(samples, n).flip(1) for n in ("features", "corrections", "similarity", "valid")}
    torch.testing.assert_close(expert(z, pairs, dataclasses.replace(samples, **reverse)).z, expected)
    shuffled = [dataclasses.replace(part, **{n: v[batch] for n, v in vars(part).items()}) for part in (pairs, samples)]
    torch.testing.assert_close(expert(z[batch], *shuffled).z, expected[batch])


def test_every_token_counts_where_it_is_valid(expert):
    pairs, samples, z = make_pairs(1, 3), make_samples(1, 2), tiny_capt.unit(1, DIM)
    expected = expert(z, pairs, samples).z
    for part, name in ((pairs, "difference"), (pairs, "commonality"), (samples, "features"), (samples, "u")):
        changed = dataclasses.replace(part, **{name: -getattr(part, name)})
        both = (changed, samples) if part is pairs else (pairs, changed)
        assert not torch.allclose(expert(z, *both).z, expected)


def test_experts_are_silent_without_evidence(expert):
    z = tiny_capt.unit(2, DIM)
    nothing = make_samples(2, 3, valid=torch.zeros(2, 3, dtype=torch.bool))
    assert torch.equal(expert(z, make_pairs(2, 2), nothing).z, z)
    expert.gate_by_evidence = False
    assert not torch.allclose(expert(z, make_pairs(2, 2), nothing).z, z)


def test_dropout_only_in_training(expert):
    args = tiny_capt.unit(2, DIM), make_pairs(2, 2), make_samples(2, 2)
    assert torch.equal(expert(*args).z, expert(*args).z)
    expert.train()
    assert not torch.equal(expert(*args).z, expert(*args).z)


def test_without_corrections_only_the_experts_move_the_feature():
    expert = MultiGranularityDiscrepancyExpert(DIM, 2, use_corrections=False).eval()
    z = tiny_capt.unit(4, DIM)
    out = expert(z, make_pairs(4, 3), make_samples(4, 2))
    assert torch.equal(out.z, z)  # the last projection starts at zero
    torch.nn.init.normal_(expert.mixture.out.weight)
    assert not torch.equal(expert(z, make_pairs(4, 3), make_samples(4, 2)).z, z)
