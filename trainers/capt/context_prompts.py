"""Learned context vectors around class names, as CoOp and its descendants arrange them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .prompted_clip import PromptedCLIP
from .stock_clip import tokenizer

__all__ = ["ContextTexts"]


class ContextTexts(nn.Module):
    """The fixed part of ``<start> [context] class name. <end>`` for C classes; :meth:`forward` puts a context in.

    Args:
        prompted: the CLIP whose token table is used.
        classnames: C names; ``_`` is read as a blank.
        num_context: n, context tokens.
        position: where the class name stands: ``end`` (the default everywhere but in CoOp's ablations), ``middle``, ``front``.
        context_words: words to tokenise in the context's place; only their number matters. CoOp writes ``X X X X``.

    Raises:
        ValueError: unknown position, or a name too long for the context window.
    """

    def __init__(self, prompted: PromptedCLIP, classnames: Sequence[str], num_context: int, position: str = "end"):
        super().__init__()
        if position not in ("end", "middle", "front"):
            raise ValueError(f'CLASS_TOKEN_POSITION must be "end", "middle" or "front", got "{position}"')
        names = [name.replace("_", " ") for name in classnames]
        placeholder = " ".join(["X"] * num_context)
        ids = prompted.tokenize([f"{placeholder} {name}." for name in names])
        with torch.no_grad():
            embeddings = prompted.embed(ids)  # (C, L, Dt)
        self.num_context = num_context
        self.position = position
        self.register_buffer("prefix", embeddings[:, :1], persistent=False)  # (C, 1, Dt) start token
        self.register_buffer("suffix", embeddings[:, 1 + num_context :], persistent=False)  # (C, L-1-n, Dt) name . end
        self.register_buffer("eot", ids.argmax(dim=-1), persistent=False)  # (C,)
        self.register_buffer("order", self._order([len(tokenizer.encode(name)) for name in names]), persistent=False)

    def _order(self, name_lengths: list[int]) -> Tensor:
        """``(C, L)`` positions that turn ``start, context, name . end`` into the arrangement asked for."""
        length, n = 1 + self.num_context + self.suffix.shape[1], self.num_context
        order = torch.arange(length).repeat(len(name_lengths), 1)
        half = {"end": n, "middle": n // 2, "front": 0}[self.position]
        for row, size in enumerate(name_lengths):
            context, name = order[row, 1 : 1 + n].clone(), order[row, 1 + n : 1 + n + size].clone()
            order[row, 1 : 1 + n + size] = torch.cat([context[:half], name, context[half:]])
        return order.to(self.prefix.device)

    def forward(self, context: Tensor) -> Tensor:
        """Token embeddings ``(C, L, Dt)`` for a context ``(n, Dt)`` shared by all classes or ``(C, n, Dt)``, one each."""
        context = context.to(self.prefix.dtype).expand(len(self.prefix), -1, -1)
        x = torch.cat([self.prefix, context, self.suffix], dim=1)
        if self.position == "end":
            return x
        return x.gather(1, self.order.unsqueeze(-1).expand_as(x))
