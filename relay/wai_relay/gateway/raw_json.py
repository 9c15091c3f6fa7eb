"""One undecoded value of a request body, decoded when somebody needs it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from wai_protocol.errors import RequestError

MAX_SCALAR_BYTES: Final = 64  # of a number or a flag; the longest that is one has 20
MAX_OPTIONS_BYTES: Final = 64 * 1024  # of an object of options; real ones have under 2 KiB

# The first half of a pair of \u escapes for one character, without the second.
_HALF_PAIR: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_ANY: Final = msgspec.json.Decoder()


def value_of(raw: msgspec.Raw) -> Any:
    """The value. Raises `RequestError` if it is no JSON. The caller bounds its length."""
    try:
        return _ANY.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(
            f"The request body is not valid JSON: {in_words(error, bytes(raw))}."
        ) from None


def scalar_of(raw: msgspec.Raw) -> Any:
    """A number, a flag or null; a list stands for what is too long to be one of them."""
    return value_of(raw) if len(bytes(raw)) <= MAX_SCALAR_BYTES else []


def options_of(raw: msgspec.Raw) -> Any:
    """An object of options. Raises `RequestError` if it is too long to be one."""
    if len(bytes(raw)) > MAX_OPTIONS_BYTES:
        raise RequestError(f"The request's options are longer than {MAX_OPTIONS_BYTES} bytes.")
    return value_of(raw)


def in_words(error: Exception, data: bytes) -> str:
    """What is wrong with `data`. msgspec calls a string truncated that ends in half a pair."""
    text = str(error)
    if "truncated" in text and _HALF_PAIR.search(data):
        return "a \\u escape in it is one half of a surrogate pair"
    return text


def named_in_any_case(fields: Mapping[str, msgspec.Raw], names: tuple[str, ...]) -> list[str]:
    """Those of `fields` that are called one of `names`, in any case: Go's decoder, which is
    Ollama's, takes them all."""
    found = [name for name in names if name in fields]
    if all(map(str.islower, fields)):  # as nearly always
        return found
    return found + [name for name in fields if not name.islower() and name.lower() in names]
