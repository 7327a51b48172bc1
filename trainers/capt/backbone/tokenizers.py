"""Texts to token ids, by OpenAI's vocabulary or by the tokenizer that lies beside a CLIP's weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import stock_clip

__all__ = ["OpenAITokenizer", "Tokenizer", "TransformersTokenizer"]

logger = logging.getLogger(__name__)


class Tokenizer:
    """Words between start and end tokens, and padding behind.

    Attributes:
        start: ids in front of a text; CLIP has one, SigLIP none.
        end: ids behind it, one or none.
        pad: id of what fills a row up.
        reads_last: the text's feature is read at the row's last place, whatever stands there, as SigLIP does; else at
            the end token.
    """

    start: list[int]
    end: list[int]
    pad: int
    reads_last = False

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        raise NotImplementedError

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Token ids ``(C, L)`` int64; too long a text is cut behind its last token that fits, counted in the log."""
        ids = torch.full((len(texts), context_length), self.pad, dtype=torch.long)
        room, num_cut = context_length - len(self.start) - len(self.end), 0
        for row, text in enumerate(texts):
            tokens = self.encode(text)
            num_cut += len(tokens) > room
            tokens = [*self.start, *tokens[:room], *self.end]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        if num_cut:
            logger.warning("%d of %d texts were cut to the context of %d tokens", num_cut, len(texts), context_length)
        return ids

    def end_of(self, ids: Tensor) -> Tensor:
        """Place ``(C,)`` of ids ``(C, L)`` at which each text's feature is read."""
        if self.reads_last:
            return torch.full_like(ids[:, 0], ids.shape[1] - 1)
        return (ids == self.end[0]).int().argmax(dim=-1)

    def placeholder(self, num_tokens: int) -> str:
        """Words of ``num_tokens`` tokens, for places that learned ones will take."""
        return " ".join([self._short_word] * num_tokens)

    @cached_property
    def _short_word(self) -> str:
        for word in ("X", "a", "the", "photo", "of"):
            if len(self.encode(" ".join([word] * 3))) == 3:
                return word
        raise ValueError(
            "the tokenizer of this CLIP has no token for any of X, a, the, photo, of; is it the right one?"
        )


class OpenAITokenizer(Tokenizer):
    """The byte pairs that OpenAI's CLIP and most others read."""

    pad = 0

    def __init__(self) -> None:
        vocabulary = stock_clip.tokenizer.encoder
        self.start, self.end = [vocabulary["<|startoftext|>"]], [vocabulary["<|endoftext|>"]]

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        return stock_clip.tokenizer.encode(text)


class TransformersTokenizer(Tokenizer):
    """A tokenizer of the package transformers.

    Args:
        tokenizer: what ``AutoTokenizer.from_pretrained`` gives.
        reads_last: see :class:`Tokenizer`.
        clean: what is done to a text before.

    Raises:
        ValueError: it pads in front, or has no end token where one is needed.
    """

    def __init__(self, tokenizer: Any, reads_last: bool = False, clean: Callable[[str], str] | None = None):
        self.tokenizer, self.reads_last, self.clean = tokenizer, reads_last, clean
        bare, whole = self.encode("a"), list(tokenizer("a").input_ids)
        at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        self.start, self.end = whole[:at], whole[at + len(bare) :]
        self.pad = tokenizer.pad_token_id or 0
        if getattr(tokenizer, "padding_side", "right") != "right":
            raise ValueError('it pads in front of a text, where prompts would stand; set its padding_side to "right"')
        if not reads_last and len(self.end) != 1:
            raise ValueError(f"it puts {len(self.end)} tokens behind a text, and CLIP's text tower is read at the one")

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone."""
        text = text if self.clean is None else self.clean(text)
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
