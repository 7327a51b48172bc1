"""Where context tokens and class names stand, against a loop over the classes."""

import pytest
import torch

from trainers.capt.bases.context import encode_texts_per_image, name_order, place_context

C, N, L, DT = 3, 5, 14, 4
LENGTHS = [1, 3, 2]


def _parts():
    source = torch.Generator().manual_seed(0)
    shapes = (C, N, DT), (C, 1, DT), (C, L - 1 - N, DT)
    return [torch.randn(*shape, generator=source) for shape in shapes]


def _by_hand(context, prefix, suffix, position):
    rows = []
    for i, length in enumerate(LENGTHS):
        name, rest = suffix[i, :length], suffix[i, length:]
        half = N // 2
        order = {
            "end": [context[i], name],
            "middle": [context[i, :half], name, context[i, half:]],
            "front": [name, context[i]],
        }[position]
        rows.append(torch.cat([prefix[i], *order, rest]))
    return torch.stack(rows)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_one_gather_moves_every_name(position):
    context, prefix, suffix = _parts()
    order = name_order(LENGTHS, N, L, position)
    assert torch.equal(place_context(context, prefix, suffix, order), _by_hand(context, prefix, suffix, position))


def test_a_shared_context_is_that_of_every_class():
    context, prefix, suffix = _parts()
    shared = place_context(context[0], prefix, suffix)
    assert torch.equal(shared, place_context(context[:1].expand(C, -1, -1), prefix, suffix))


def test_unknown_position_is_refused():
    with pytest.raises(ValueError, match="must be one of end, middle, front, got 'back'"):
        name_order(LENGTHS, N, L, "back")


@pytest.mark.parametrize("max_texts", [1, 3, 7, 100])
def test_texts_for_each_image_do_not_depend_on_the_chunks(max_texts):
    contexts, prefix, suffix = _parts()
    eot = torch.tensor([8, 9, 10])
    calls = []

    def encode(prompts, ends):
        calls.append(len(prompts))
        return prompts.cumsum(dim=1)[torch.arange(len(prompts)), ends]

    features = encode_texts_per_image(encode, contexts, prefix, suffix, eot, max_texts)
    expected = torch.stack([encode(place_context(context, prefix, suffix), eot) for context in contexts])
    assert torch.equal(features, expected)
    assert max(calls) <= max(max_texts, C)
