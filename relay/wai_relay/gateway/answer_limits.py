"""How long an answer may get, and how many answers a request asks for. Pure.

A key's limits are held against what these say, so where servers differ in what they make of a field
(or of two fields for the same thing) the one counts that allows most.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.surface import Route

from .dialects.dialect import Dialect, Fields
from .raw_json import MAX_SCALAR_BYTES, named_in_any_case, scalar_of, value_of

# What bounds an answer's length, by whatever name; `n_predict` is llama-server's own, which it
# prefers to the others.
OUTPUT_LIMIT_FIELDS: Final = (
    *("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict"),
)
MAX_OUTPUT_TOKENS: Final = 1 << 31
# How many answers are written for one prompt. `n_cmpl` is llama-server's name for `n`.
ANSWER_COUNT_FIELDS: Final = ("n", "best_of", "n_cmpl")
MAX_ANSWERS: Final = 1 << 16  # more than any server takes; only keeps the numbers small


def output_limit(fields: Fields, dialect: Dialect) -> int | None:
    """The caller's own limit for one answer, in tokens: the largest of those that it gives. None
    without one, or where one of them says "no limit". Raises `RequestError`."""
    limits: list[int] = []
    for name in named_in_any_case(fields, OUTPUT_LIMIT_FIELDS):
        value = _whole_number(name, fields[name])
        if value is not None:
            limits.append(value)
    limits += dialect.output_limits(fields)
    # llama-server takes -1 for "no limit".
    if not limits or min(limits) < 0:
        return None
    return min(max(limits), MAX_OUTPUT_TOKENS)


def answers_asked(fields: Fields, dialect: Dialect, route: Route) -> int:
    """How many answers are written: choices, for each of the prompts."""
    choices = 1
    for name in ANSWER_COUNT_FIELDS:
        if name in fields:
            choices = max(choices, _count(fields[name]))
    return min(choices * dialect.prompts_asked(route, fields), MAX_ANSWERS)


def _whole_number(name: str, raw: msgspec.Raw) -> int | None:
    match scalar_of(raw):
        case None:
            return None
        case int() as value if not isinstance(value, bool):
            return value
        case float() as value if value.is_integer():  # JavaScript and Go write numbers so
            return int(value)
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
