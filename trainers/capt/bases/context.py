"""Prompts that share learned context tokens: ``[start] context words, class name, "."`` as CoOp assembles them.

Shapes: C classes, L context length, n number of learned tokens, Dt text width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..backbone.prompted_clip import PromptedCLIP

__all__ = [
    "ClassTokens",
    "class_tokens",
    "encode_texts_per_image",
    "left_over",
    "meta_net",
    "name_order",
    "place_context",
    "plain_name",
    "shared_length",
    "text_tokens",
]

POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True)
class ClassTokens:
    """What stays fixed in the prompts of C classes while the context is learned.

    Attributes:
        prefix: ``(C, 1, Dt)`` embedding of the start token; ``(C, 0, Dt)`` for a SigLIP, which has none.
        suffix: ``(C, L-1-n, Dt)`` embeddings of everything behind the context.
        eot: ``(C,)`` int64 position of the end token, or wherever else the text is read.
        order: ``(C, L)`` int64, see :func:`name_order`; None where the class name stands at the end.
        length: tokens of the longest prompt, up to where it is read; what stands behind changes no feature.
    """

    prefix: Tensor
    suffix: Tensor
    eot: Tensor
    order: Tensor | None
    length: int


def plain_name(class_name: str) -> str:
    """The class name as a text encoder should read it."""
    return class_name.replace("_", " ")


@torch.no_grad()
def class_tokens(
    clip: PromptedCLIP, class_names: Sequence[str], context: str, num_context: int, position: str = "end"
) -> ClassTokens:
    """Embed ``"{context} {name}."`` for every class and cut the learned tokens out.

    Args:
        clip: the model that embeds.
        class_names: underscores are read as spaces.
        context: words that stand for the context; its first ``num_context`` tokens are the learned ones, further ones
            stay (MaPLe learns two of ``a photo of a``).
        num_context: n.
        position: where the class name stands: behind the context, in its middle or in front of it.

    Raises:
        ValueError: ``position`` is none of end, middle, front, the context leaves no room for a name, or it shares
            tokens with the names.
    """
    tokenizer = clip.tokenizer
    num_start = len(tokenizer.start)
    most = clip.context_length - num_start - 2 - len(tokenizer.end)  # one token of the name, full stop
    if num_context > most:
        raise ValueError(f"N_CTX must be at most {most}, CLIP reads {clip.context_length} tokens, got {num_context}")
    names = [plain_name(name) for name in class_names]
    ids = clip.tokenize([f"{context} {name}." for name in names])
    learned = torch.tensor(tokenizer.encode(context)[:num_context], device=ids.device)
    if num_context and not torch.equal(ids[:, num_start : num_start + num_context], learned.expand(len(ids), -1)):
        raise ValueError(
            f'the tokens of "{context}" run into those of the class names; choose other words of N_CTX tokens'
        )
    order = None
    if position != "end":
        before = len(tokenizer.encode(context))  # a name has other tokens where no word stands before it
        lengths = [len(tokenizer.encode(f"{context} {name}")) - before for name in names]
        order = name_order(lengths, num_context, clip.context_length, position, num_start).to(ids.device)
    return _without_context(clip, ids, num_context, order)


@torch.no_grad()
def text_tokens(clip: PromptedCLIP, texts: Sequence[str], num_context: int) -> ClassTokens:
    """Embed one text for every class, and cut the ``num_context`` tokens out that are learned.

    Args:
        clip: the model that embeds.
        texts: C texts that begin with words for the context.
        num_context: n.
    """
    return _without_context(clip, clip.tokenize(texts), num_context, None)


def _without_context(clip: PromptedCLIP, ids: Tensor, num_context: int, order: Tensor | None) -> ClassTokens:
    embedding = clip.embed(ids)  # (C, L, Dt)
    num_start, eot = len(clip.tokenizer.start), clip.tokenizer.end_of(ids)
    prefix, suffix = embedding[:, :num_start], embedding[:, num_start + num_context :]
    return ClassTokens(prefix, suffix, eot, order, int(eot.max()) + 1)


def name_order(
    name_lengths: Sequence[int], num_context: int, context_length: int, position: str, num_start: int = 1
) -> Tensor:
    """Which token of ``[start, context, suffix]`` stands at each place once the class name is moved forward.

    Moving the name permutes the sequence, so one gather does it for all classes.

    Args:
        name_lengths: tokens of each of the C names.
        num_context: n.
        context_length: L.
        position: ``end``, ``middle`` (behind the first half of the context) or ``front``.
        num_start: start tokens.

    Returns:
        ``(C, L)`` int64.

    Raises:
        ValueError: unknown position.
    """
    if position not in POSITIONS:
        raise ValueError(f"the class name's position must be one of {', '.join(POSITIONS)}, got {position!r}")
    before = {"end": num_context, "middle": num_context // 2, "front": 0}[position]  # context tokens before the name
    length = torch.tensor(name_lengths).unsqueeze(1)  # (C, 1)
    place = torch.arange(context_length).expand(len(name_lengths), -1)  # (C, L)
    start = num_start + before
    in_name = (place >= start) & (place < start + length)
    in_rest = (place >= start + length) & (place < num_start + num_context + length)  # context tokens behind the name
    return torch.where(in_name, place + num_context - before, torch.where(in_rest, place - length, place))


def place_context(
    context: Tensor, prefix: Tensor, suffix: Tensor, order: Tensor | None = None, length: int | None = None
) -> Tensor:
    """Prompt embeddings, in the dtype of ``prefix``.

    Args:
        context: ``(n, Dt)`` for all classes, or ``(C, n, Dt)``; ``(B, 1, n, Dt)`` gives prompts for each of B images.
        prefix: ``(C, 1, Dt)``.
        suffix: ``(C, L-1-n, Dt)``.
        order: ``(C, L)``, see :func:`name_order`.
        length: tokens of the longest prompt, where the padding behind it need not be encoded; becomes L.

    Returns:
        ``(C, L, Dt)``, or ``(B, C, L, Dt)``.
    """
    if length is not None:
        suffix = suffix[..., : length - prefix.shape[-2] - context.shape[-2], :]
        order = None if order is None else order[:, :length]
    shape = torch.broadcast_shapes(context.shape[:-2], prefix.shape[:-2])  # (C,) or (B, C)
    parts = [part.to(prefix.dtype).expand(*shape, -1, -1) for part in (prefix, context, suffix)]
    prompts = torch.cat(parts, dim=-2)
    if order is None:
        return prompts
    return prompts.gather(-2, order.unsqueeze(-1).expand_as(prompts))


LAST_WORDS = ("a", "of", "doing")  # of the family's templates, in front of the class name


@torch.no_grad()
def left_over(prompted: PromptedCLIP, suffix: Tensor | None, words: Sequence[str] = LAST_WORDS) -> Tensor:
    """Tokens ``(k, Dt)`` that stand between the learned context and the class names, fp32.

    CoOp's code counts the words that its context starts from, and a comma is a token but no word: the last word of "a
    type of pet, a photo of a" then stays in the prompts, behind the learned tokens.

    Args:
        prompted: the CLIP.
        suffix: ``(C, L, Dt)`` stored embeddings of what stands behind the context; None where nothing is stored.
        words: what may be left over; a token counts where it is one of them in all C prompts.
    """
    first = torch.tensor([prompted.tokenizer.encode(word)[:1] for word in words])
    known = prompted.embed(first)[:, 0].float().cpu()  # (W, Dt)
    if suffix is None:
        return known[:0]
    suffix = suffix.float().cpu()
    num = 0
    while num < suffix.shape[1]:
        alike = cosine_similarity(suffix[:, num].unsqueeze(1), known, dim=-1)  # (C, W)
        if not (alike > 0.99).all(dim=0).any():
            break
        num += 1
    return suffix[0, :num]


@torch.no_grad()
def shared_length(tokens: ClassTokens, num_context: int, per_class: bool = False) -> int:
    """How many tokens all prompts have in common at their beginning, none of them read; 0 for a single class.

    Args:
        tokens: what stands around the context.
        num_context: n.
        per_class: whether every class has a context of its own.
    """
    num_classes, num_start = tokens.prefix.shape[:2]
    if num_classes < 2:
        return 0
    is_same = torch.cat(
        [
            (tokens.prefix == tokens.prefix[:1]).all(dim=-1).all(dim=0),
            torch.full((num_context,), not per_class, device=tokens.prefix.device),
            (tokens.suffix == tokens.suffix[:1]).all(dim=-1).all(dim=0),
        ]
    )  # (L,) by the place in [start, context, suffix]
    if tokens.order is not None:
        is_same = (tokens.order == tokens.order[:1]).all(dim=0) & is_same[tokens.order[0]]
    return min(int(is_same.long().cumprod(dim=0).sum()), int(tokens.eot.min()))


def meta_net(embed_dim: int, text_width: int) -> nn.Sequential:
    """CoCoOp's meta-net: image feature ``(B, D)`` to a shift ``(B, Dt)`` of every context token."""
    hidden = embed_dim // 16
    first, second = nn.Linear(embed_dim, hidden), nn.Linear(hidden, text_width)
    return nn.Sequential(OrderedDict(linear1=first, relu=nn.ReLU(), linear2=second))


def encode_texts_per_image(
    encode_text: Callable[..., Tensor],
    contexts: Tensor,
    prefix: Tensor,
    suffix: Tensor,
    eot: Tensor,
    max_texts: int = 1024,
    length: int | None = None,
    shared: int = 0,
) -> Tensor:
    """Text features for prompts that differ from image to image, ``(B, C, D)``, not normalised.

    Args:
        encode_text: maps embeddings ``(M, L, Dt)`` and end positions ``(M,)`` to features ``(M, D)``; where
            the texts of an image share something it is told, see :func:`.prompted_clip.encode_text_with`.
        contexts: ``(B, n, Dt)``.
        prefix: ``(C, 1, Dt)``.
        suffix: ``(C, L-1-n, Dt)``.
        eot: ``(C,)``.
        max_texts: texts in one call of the text tower; bounds the memory.
        length: see :func:`place_context`.
        shared: see :func:`shared_length`.
    """
    images_a_call = max(1, max_texts // len(prefix))
    features = []
    for part in contexts.split(images_a_call):
        prompts = place_context(part.unsqueeze(1), prefix, suffix, length=length)  # (b, C, L, Dt)
        said = {"shared": shared, "groups": len(part)} if shared else {}
        encoded = encode_text(prompts.flatten(0, 1), eot.repeat(len(part)), **said)
        features.append(encoded.unflatten(0, (len(part), -1)))
    return torch.cat(features)
