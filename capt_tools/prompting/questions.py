"""The two questions of the paper's chain of thought, and the form that their answers must have."""

from __future__ import annotations

from typing import Any

__all__ = ["LOOK_SCHEMA", "PAIR_SCHEMA", "SYSTEM", "look_question", "pair_question"]

SYSTEM = (
    "You describe what things look like in photographs. Name only what can be seen: shape, colour, parts, texture, "
    "surroundings. Every sentence is short, at most 40 words, and stands alone. Answer with one JSON object only."
)

_SENTENCES = {
    "type": "array",
    "minItems": 1,
    "maxItems": 12,
    "items": {"type": "string", "minLength": 3, "maxLength": 2000},
}
LOOK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["appearance"],
    "properties": {"appearance": _SENTENCES},
}
PAIR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["commonality", "difference_a", "difference_b"],
    "properties": {"commonality": _SENTENCES, "difference_a": _SENTENCES, "difference_b": _SENTENCES},
}


def look_question(name: str) -> str:
    """Step 1: what a class looks like."""
    return (
        f'What does "{name}" look like in a photo? Give 3 to 5 sentences. '
        'Form of the answer: {"appearance": ["...", "..."]}'
    )


def pair_question(a: str, b: str, look_a: list[str], look_b: list[str]) -> str:
    """Step 2: what the two share and what tells them apart, with the answers of step 1 before the eyes."""
    return (
        f'"{a}" looks like this: {" ".join(look_a)}\n"{b}" looks like this: {" ".join(look_b)}\n'
        f'A vision model confuses photos of the two. Give 2 to 4 sentences on what "{a}" and "{b}" share, 2 to 4 that '
        f'begin with "a photo of a {a}" and tell it from "{b}", and 2 to 4 that begin with "a photo of a {b}" and tell '
        f'it from "{a}". Form of the answer: '
        '{"commonality": ["..."], "difference_a": ["..."], "difference_b": ["..."]}'
    )
