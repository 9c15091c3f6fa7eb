"""How long an answer may get, and how many answers a request asks for. Pure.

A key's limits are held against what these say, so where servers differ in what they make of a field
(or of two fields for the same thing) the one counts that allows most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.surface import Dialect, Route

from .raw_json import options_of, scalar_of

# What bounds an answer's length, by whatever name; `n_predict` is llama-server's own, which it
# prefers to the others.
OUTPUT_LIMIT_FIELDS: Final = (
    *("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict"),
)
MAX_OUTPUT_TOKENS: Final = 1 << 31
# How many answers are written for one prompt. `n_cmpl` is llama-server's name for `n`.
ANSWER_COUNT_FIELDS: Final = ("n", "best_of", "n_cmpl")
MAX_ANSWERS: Final = 1 << 16  # more than any server takes; only keeps the numbers small
COMPLETIONS_PATH: Final = "/v1/completions"

Fields = Mapping[str, msgspec.Raw]

_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
# A list of prompts with more commas than this is not decoded; each comma then counts as a prompt.
# Decoding it costs 0.1 µs for each, which no stream should wait behind.
MAX_LISTED: Final = 10_000


def output_limit(fields: Fields, route: Route) -> int | None:
    """The caller's own limit for one answer, in tokens: the largest of those that it gives. None
    without one, or where one of them says "no limit". Raises `RequestError`."""
    limits: list[int] = []
    for name, raw in fields.items():
        # Go's decoder, Ollama's, takes names in any case.
        if name in OUTPUT_LIMIT_FIELDS or name.lower() in OUTPUT_LIMIT_FIELDS:
            value = _whole_number(name, raw)
            if value is not None:
                limits.append(value)
    if route.dialect is Dialect.OLLAMA:
        limit = _ollama_option(fields, "num_predict")
        if limit is not None:
            # Ollama takes 0 for "no limit" too.
            limits.append(limit if limit > 0 else -1)
    # llama-server takes -1 for "no limit".
    if not limits or min(limits) < 0:
        return None
    return min(max(limits), MAX_OUTPUT_TOKENS)


def answers_asked(fields: Fields, route: Route) -> int:
    """How many answers are written: choices, for each of the prompts. Raises `RequestError`."""
    choices = 1
    for name in ANSWER_COUNT_FIELDS:
        raw = fields.get(name)
        if raw is not None:
            choices = max(choices, _count(name, raw))
    if route.path == COMPLETIONS_PATH and (raw := fields.get("prompt")) is not None:
        choices *= _prompts_in(bytes(raw))
    return min(choices, MAX_ANSWERS)


def context_asked(fields: Fields, route: Route) -> int | None:
    """The context that the caller wants the model loaded with, as only Ollama allows."""
    if route.dialect is not Dialect.OLLAMA:
        return None
    return _ollama_option(fields, "num_ctx")


def _prompts_in(prompt: bytes) -> int:
    """How many prompts a completion's `prompt` holds: it may be a list of them. A list of numbers
    is one prompt, in tokens."""
    if prompt[:1] != b"[":
        return 1
    commas = prompt.count(b",")
    if commas > MAX_LISTED:
        inside = prompt[1:]
        return commas + 1 if any(mark in inside for mark in (b'"', b"[", b"{")) else 1
    try:
        items = _ITEMS.decode(prompt)
    except msgspec.DecodeError:
        return 1
    return max(sum(bytes(item)[:1] in (b'"', b"[", b"{") for item in items), 1)


def _whole_number(name: str, raw: msgspec.Raw) -> int | None:
    match scalar_of(raw):
        case None:
            return None
        case int() as value if not isinstance(value, bool):
            return value
        case _:
            raise RequestError(f"`{name}` must be a whole number.")


def _count(name: str, raw: msgspec.Raw) -> int:
    match scalar_of(raw):
        case None:
            return 1
        case int() | float() as value if not isinstance(value, bool):
            return math.ceil(min(value, MAX_ANSWERS))  # a fraction is for the server to judge
        case _:
            raise RequestError(f"`{name}` must be a whole number.")


def _ollama_option(fields: Fields, name: str) -> int | None:
    """One of Ollama's `options`; what is no number is left for Ollama to refuse."""
    for field, raw in fields.items():
        if field.lower() == "options":
            options = options_of(raw)
            value: Any = options.get(name) if isinstance(options, dict) else None
            if isinstance(value, int | float) and not isinstance(value, bool):
                return int(min(max(value, -1), MAX_OUTPUT_TOKENS))
    return None
