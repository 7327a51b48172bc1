"""Diff-Manner Adapter and sample miner: Eq. 8-10 and 13 against loops in float64."""

import pytest
import tiny_capt
import torch
from torch.nn.functional import normalize

from trainers.capt.method.diff_manner_adapter import DiffMannerAdapter
from trainers.capt.method.sample_miner import SampleConfusionMiner
from trainers.capt.method.semantic_miner import mine_pairs

B, WIDTH, HEADS, GRID = 2, 8, 2, 3
N = GRID * GRID


@pytest.fixture
def adapter():
    torch.manual_seed(0)
    adapter = DiffMannerAdapter(WIDTH, GRID, HEADS, alpha=5.0, gamma=0.5)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter


def layer_norm(x, norm):
    x = x.double()
    mean, var = x.mean(), x.var(unbiased=False)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()


def naive(adapter, cls, tokens, c):
    """One image, one equation after the other."""
    q = layer_norm(cls, adapter.ln_query)
    kv = torch.stack([layer_norm(x, adapter.ln_tokens) for x in tokens])
    w_q, w_k, w_v = adapter.attention.in_proj_weight.double().chunk(3)
    b_q, b_k, b_v = adapter.attention.in_proj_bias.double().chunk(3)
    q, k, v = w_q @ q + b_q, kv @ w_k.t() + b_k, kv @ w_v.t() + b_v
    heads, size = [], WIDTH // HEADS
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        weights = ((k[:, part] @ q[part]) / size**0.5).softmax(0)
        heads.append(weights @ v[:, part])
    out = adapter.attention.out_proj
    g = out.weight.double() @ torch.cat(heads) + out.bias.double()  # Eq. 9
    kernel, bias = adapter.convolution.weight.double(), adapter.convolution.bias.double()
    x = tokens.double() + g
    total = torch.zeros(WIDTH, dtype=torch.double)
    for row in range(GRID):
        for column in range(GRID):
            for channel in range(WIDTH):
                value = bias[channel]
                for dr in (-1, 0, 1):
                    for dc in (-1, 0, 1):
                        if 0 <= row + dr < GRID and 0 <= column + dc < GRID:
                            neighbour = x[(row + dr) * GRID + column + dc, channel]
                            value = value + kernel[channel, 0, dr + 1, dc + 1] * neighbour
                total[channel] += value
    return cls.double() + 5.0 * c.double() ** 0.5 * total / N  # Eq. 10 pooled, alpha of Eq. 13


def test_adapter_against_a_loop(adapter):
    cls, tokens = torch.randn(B, WIDTH), torch.randn(B, N, WIDTH)
    c = torch.tensor([0.3, 0.9])
    expected = torch.stack([naive(adapter, cls[b], tokens[b], c[b]) for b in range(B)])
    torch.testing.assert_close(adapter(cls, tokens, c).double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_scale_by_hand():
    c = torch.tensor([0.0, 0.25, 1.0])
    assert DiffMannerAdapter(8, 2, 2, alpha=4.0, gamma=0.5).scale(c).tolist() == [0, 2, 4]
    assert DiffMannerAdapter(8, 2, 2, alpha=4.0, gamma=0.0).scale(c).tolist() == [4, 4, 4]


def test_a_certain_image_stays_as_it_is(adapter):
    cls, tokens = torch.randn(B, WIDTH), torch.randn(B, N, WIDTH)
    assert torch.equal(adapter(cls, tokens, torch.zeros(B)), cls)


def test_untrained_adapter_changes_nothing():
    cls, tokens = torch.randn(B, WIDTH), torch.randn(B, N, WIDTH)
    assert torch.equal(DiffMannerAdapter(WIDTH, GRID, HEADS)(cls, tokens, torch.ones(B)), cls)


def test_attention_starts_as_the_towers(base):
    block = base.prompted.clip.visual.transformer.resblocks[-1]
    adapter = DiffMannerAdapter(base.prompted.width, base.prompted.grid, block.attn.num_heads)
    adapter.start_from(block)
    x = torch.randn(1, 5, base.prompted.width)
    query = block.ln_1(x[:, :1])
    expected, _ = block.attn(query.transpose(0, 1), *[block.ln_1(x).transpose(0, 1)] * 2, need_weights=False)
    actual, _ = adapter.attention(adapter.ln_query(x[:, :1]), *[adapter.ln_tokens(x)] * 2, need_weights=False)
    torch.testing.assert_close(actual, expected.transpose(0, 1))


def mine(base, bank, own=None, k=3, num=4, shape_seed=0):
    torch.manual_seed(0)
    miner = tiny_capt.make_model(base, bank=bank, num_representatives=k).sample_miner
    with torch.no_grad():
        miner.adapter.convolution.weight.normal_(std=0.1)
    z, cls, tokens = tiny_capt.encode(base, tiny_capt.images(num, shape_seed))
    probs = base.logits(z).softmax(-1)
    pairs = mine_pairs(probs, bank.counts, 4)
    own = torch.full((num,), -1) if own is None else own
    c = torch.linspace(0.2, 1, num)
    texts = base.encode_classes(bank.classnames)
    to_bank = torch.arange(bank.num_classes)
    return miner, c, miner(cls, tokens, c, pairs, base.project, bank, to_bank, texts, own), (cls, tokens, texts)


def test_u_is_the_projected_class_token(base, bank):
    miner, c, samples, (cls, tokens, _) = mine(base, bank)
    visual = base.prompted.clip.visual
    expected = normalize(visual.ln_post(miner.adapter(cls, tokens, c)) @ visual.proj, dim=-1)
    torch.testing.assert_close(samples.u, expected)


def test_representatives_are_the_banks_entries(base, bank):
    miner, _, samples, (cls, tokens, texts) = mine(base, bank)
    e = bank.entries
    assert samples.valid.any()
    for b, k in samples.valid.nonzero().tolist():
        m = int(samples.entry[b, k])
        expected = miner.confusion_feature(e.cls[m : m + 1], e.tokens[m : m + 1], e.intensity[m : m + 1], base.project)
        torch.testing.assert_close(samples.features[b, k], expected[0], rtol=1e-5, atol=1e-6)
        correction = texts[e.label[m]] - texts[e.pseudo_label[m]]
        torch.testing.assert_close(samples.corrections[b, k], correction)
        looks = bank.look(cls[b : b + 1], tokens[b : b + 1])[0], torch.cat([e.cls[m], e.layout[m]])
        alike = torch.nn.functional.cosine_similarity(*(look - bank.likeness.center for look in looks), dim=0)
        torch.testing.assert_close(samples.similarity[b, k], alike, rtol=1e-5, atol=1e-5)
        assert samples.label[b, k] == e.label[m]


def test_empty_places_are_zero(base, bank):
    _, _, samples, _ = mine(base, bank, k=30)
    empty = ~samples.valid
    assert empty.any()
    assert not samples.features[empty].any()
    assert not samples.corrections[empty].any()
    assert (samples.label[empty] == -1).all()


def test_queries_from_the_bank_do_not_meet_themselves(base, bank):
    own = bank.entries.index[:4]
    pixels = tiny_capt.images(20, 5)[own]  # the very pictures that the bank was built from
    torch.manual_seed(0)
    model = tiny_capt.make_model(base, bank=bank, num_representatives=30)
    with torch.no_grad():
        free = model(*tiny_capt.encode(base, pixels)).samples
        kept = model(*tiny_capt.encode(base, pixels), query_index=own).samples
    assert not (bank.entries.index[kept.entry] == own[:, None])[kept.valid].any()
    assert (bank.entries.index[free.entry] == own[:, None])[free.valid].any()  # which are nearest when not left out


def test_without_a_bank(base):
    miner = SampleConfusionMiner(tiny_capt.make_model(base).sample_miner.adapter, 3)
    z, cls, tokens = tiny_capt.encode(base, tiny_capt.images(2))
    pairs = mine_pairs(base.logits(z).softmax(-1), torch.zeros(5, 5), 2)
    samples = miner(cls, tokens, torch.ones(2), pairs, base.project, None, None, None, torch.full((2,), -1))
    assert not samples.valid.any()
    assert samples.features.shape == samples.corrections.shape == (2, 3, 64)
    assert not samples.features.any()
