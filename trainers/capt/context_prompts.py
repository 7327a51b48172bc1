"""Learned context vectors around class names, as CoOp and its descendants arrange them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .prompted_clip import PromptedCLIP
from .stock_clip import tokenizer

__all__ = ["POSITIONS", "ContextTexts", "name_order", "place_context", "plain_name"]

POSITIONS = ("end", "middle", "front")


def plain_name(class_name: str) -> str:
    """The class name as a text encoder should read it."""
    return class_name.replace("_", " ")


class ContextTexts(nn.Module):
    """The fixed part of ``<start> [context] class name. <end>`` for C classes; :meth:`forward` puts a context in.

    Args:
        prompted: the CLIP whose token table is used.
        classnames: C names; ``_`` is read as a blank.
        num_context: n, context tokens.
        position: where the class name stands: ``end`` (everywhere but in CoOp's ablations), ``middle``, ``front``.
        context_words: words whose first n tokens the context replaces; tokens beyond n stay (MaPLe learns two of
            ``a photo of a``). Without them n placeholders, as CoOp writes ``X X X X``.

    Raises:
        ValueError: unknown position.
    """

    def __init__(
        self,
        prompted: PromptedCLIP,
        classnames: Sequence[str],
        num_context: int,
        position: str = "end",
        context_words: str | None = None,
    ):
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(f'CLASS_TOKEN_POSITION must be "end", "middle" or "front", got "{position}"')
        names = [plain_name(name) for name in classnames]
        words = context_words or " ".join(["X"] * num_context)
        ids = prompted.tokenize([f"{words} {name}." if words else f"{name}." for name in names])
        with torch.no_grad():
            embeddings = prompted.embed(ids)  # (C, L, Dt)
        order = None
        if position != "end":
            lengths = [len(tokenizer.encode(name)) for name in names]
            order = name_order(lengths, num_context, ids.shape[1], position).to(ids.device)
        self.register_buffer("prefix", embeddings[:, :1], persistent=False)  # (C, 1, Dt) start token
        self.register_buffer("suffix", embeddings[:, 1 + num_context :], persistent=False)  # (C, L-1-n, Dt) name . end
        self.register_buffer("eot", ids.argmax(dim=-1), persistent=False)  # (C,)
        self.register_buffer("order", order, persistent=False)  # (C, L), None for a name at the end

    def forward(self, context: Tensor) -> Tensor:
        """Token embeddings ``(C, L, Dt)`` for a context ``(n, Dt)`` of all classes or ``(C, n, Dt)``, one each."""
        return place_context(context, self.prefix, self.suffix, self.order)


def name_order(name_lengths: Sequence[int], num_context: int, context_length: int, position: str) -> Tensor:
    """Which token of ``start, context, name . end`` stands at each place once the class name is moved forward.

    Moving the name permutes the sequence, so one gather does it for all classes.

    Args:
        name_lengths: tokens of each of the C names.
        num_context: n.
        context_length: L.
        position: ``end``, ``middle`` (behind the first half of the context) or ``front``.

    Returns:
        ``(C, L)`` int64.
    """
    before = {"end": num_context, "middle": num_context // 2, "front": 0}[position]  # context tokens before the name
    length = torch.tensor(name_lengths).unsqueeze(1)  # (C, 1)
    place = torch.arange(context_length).expand(len(name_lengths), -1)  # (C, L)
    start = 1 + before
    in_name = (place >= start) & (place < start + length)
    in_rest = (place >= start + length) & (place < 1 + num_context + length)  # context tokens behind the name
    return torch.where(in_name, place + num_context - before, torch.where(in_rest, place - length, place))


def place_context(context: Tensor, prefix: Tensor, suffix: Tensor, order: Tensor | None = None) -> Tensor:
    """Prompt embeddings, in the dtype of ``prefix``.

    Args:
        context: ``(n, Dt)`` for all classes, or ``(C, n, Dt)``; ``(B, 1, n, Dt)`` gives prompts for each of B images.
        prefix: ``(C, 1, Dt)``.
        suffix: ``(C, L-1-n, Dt)``.
        order: ``(C, L)``, see :func:`name_order`.

    Returns:
        ``(C, L, Dt)``, or ``(B, C, L, Dt)``.
    """
    shape = torch.broadcast_shapes(context.shape[:-2], prefix.shape[:-2])  # (C,) or (B, C)
    parts = [part.to(prefix.dtype).expand(*shape, -1, -1) for part in (prefix, context, suffix)]
    prompts = torch.cat(parts, dim=-2)
    if order is None:
        return prompts
    return prompts.gather(-2, order.unsqueeze(-1).expand_as(prompts))
