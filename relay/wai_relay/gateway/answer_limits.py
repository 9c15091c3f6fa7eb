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

from .raw_json import MAX_SCALAR_BYTES, options_of, scalar_of, value_of

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
    for name in _named(fields, OUTPUT_LIMIT_FIELDS):
        value = _whole_number(name, fields[name])
        if value is not None:
            limits.append(value)
    if route.dialect is Dialect.OLLAMA:
        # Ollama takes 0 for "no limit" too.
        limits += [limit or -1 for limit in _ollama_options(fields, "num_predict")]
    # llama-server takes -1 for "no limit".
    if not limits or min(limits) < 0:
        return None
    return min(max(limits), MAX_OUTPUT_TOKENS)


def answers_asked(fields: Fields, route: Route) -> int:
    """How many answers are written: choices, for each of the prompts."""
    choices = 1
    for name in ANSWER_COUNT_FIELDS:
        if name in fields:
            choices = max(choices, _count(fields[name]))
    if route.path == COMPLETIONS_PATH and (raw := fields.get("prompt")) is not None:
        choices *= _prompts_in(bytes(raw))
    return min(choices, MAX_ANSWERS)


def context_asked(fields: Fields, route: Route) -> int | None:
    """The context that the caller wants the model loaded with, as only Ollama allows."""
    if route.dialect is not Dialect.OLLAMA:
        return None
    return max(_ollama_options(fields, "num_ctx"), default=None)


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


def _count(raw: msgspec.Raw) -> int:
    """A number as the most lenient server reads it, 1 where it is none: that is for the server to
    refuse."""
    text = bytes(raw).strip(b'" \t\r\n')
    if len(text) > MAX_SCALAR_BYTES:
        return MAX_ANSWERS if text[:1].isdigit() else 1
    value = value_of(raw)
    if isinstance(value, str) and value.strip().isdecimal():
        digits = value.strip().lstrip("0")
        value = int(digits[: len(str(MAX_ANSWERS)) + 1] or 0)
    if isinstance(value, int | float):
        return max(math.ceil(min(value, MAX_ANSWERS)), 1)
    return 1


def _ollama_options(fields: Fields, name: str) -> list[int]:
    """What Ollama's `options` say of `name`; what is no number is left for Ollama to refuse."""
    found: list[int] = []
    for field in _named(fields, ("options",)):
        options = options_of(fields[field])
        value: Any = options.get(name) if isinstance(options, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append(int(min(max(value, -1), MAX_OUTPUT_TOKENS)))
    return found


def _named(fields: Fields, names: tuple[str, ...]) -> list[str]:
    """Those of `fields` that are called one of `names`, in any case: Go's decoder, which is
    Ollama's, takes them all."""
    odd = [name for name in fields if not name.islower() and name.lower() in names]
    return [*(name for name in names if name in fields), *odd]
