"""Asks an OpenAI-compatible server until an answer has the right form, or says why there is none."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from openai import APIStatusError, OpenAI, OpenAIError

from .questions import SYSTEM

__all__ = ["Asker", "NoAnswerError"]


class NoAnswerError(Exception):
    """The server gave no usable answer; the message says why."""


class Asker:
    """Questions in, checked JSON out.

    Connection errors, time-outs, 429 and 5xx are retried by the client itself, with exponential back-off; answers of
    the wrong form are asked again here.

    Args:
        base_url: of the server; None for OpenAI's.
        key: never printed nor stored.
        model: name of the model.
        timeout: seconds to wait for one answer.
        retries: of a failed request; as many for an answer of the wrong form.
        max_tokens: length of an answer.
    """

    def __init__(self, base_url: str | None, key: str, model: str, timeout: float, retries: int, max_tokens: int):
        self.client = OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=retries)
        self._key, self.model, self.retries, self.max_tokens = key, model, retries, max_tokens

    def ask(self, question: str, schema: dict[str, Any]) -> dict[str, Any]:
        """The answer as JSON that satisfies ``schema``.

        Raises:
            NoAnswerError: after all retries; or at once where the server refuses for good.
        """
        reason = ""
        for _ in range(self.retries + 1):
            try:
                return self._once(question, schema)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                reason = f"the server's answer has another form ({type(error).__name__}: {error})"
            except (ValueError, jsonschema.ValidationError) as error:
                reason = str(getattr(error, "message", error)).splitlines()[0]
            except APIStatusError as error:
                raise NoAnswerError(self._safe(f"HTTP {error.status_code}: {error.message}")) from None
            except OpenAIError as error:
                raise NoAnswerError(self._safe(f"{type(error).__name__}: {error}")) from None
        raise NoAnswerError(self._safe(f"{reason} ({self.retries + 1} times)"))

    def _once(self, question: str, schema: dict[str, Any]) -> dict[str, Any]:
        messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        reply = self.client.chat.completions.create(model=self.model, messages=messages, max_tokens=self.max_tokens)
        choice = reply.choices[0]
        if choice.finish_reason == "length":
            raise ValueError(f"the answer was cut off at {self.max_tokens} tokens; raise --max-tokens")
        text = choice.message.content or ""
        start, end = text.find("{"), text.rfind("}")  # some models put a fence or a word around it
        try:
            answer: dict[str, Any] = json.loads(text[start : end + 1])
        except ValueError as error:
            raise ValueError(f"no JSON: {error}") from error
        jsonschema.validate(answer, schema)
        return answer

    def _safe(self, text: str) -> str:
        text = " ".join(text.split())[:300]
        return text.replace(self._key, "***") if self._key else text
