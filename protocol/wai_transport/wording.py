"""Translate msgspec's validation errors for the person who wrote the invalid value.

Used for bodies of the admin API and for settings. A message of an unknown form is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_EXPECTED: Final = re.compile(r"Expected `([^`]+)`(?:, got `([^`]+)`| (.+))?")
_LENGTH: Final = re.compile(r"of length ([<>]=) (\d+)")
_BOUND: Final = re.compile(r"([<>]=?) (\S+)")
_PATTERN: Final = re.compile(r"matching regex (.+)")
_FIELD: Final = re.compile(r"Object (missing required|contains unknown) field `([^`]+)`")
_ENUM: Final = re.compile(r"Invalid enum value (.+)")
_KINDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "empty",
}
_BOUNDS: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def in_words(message: str, name: str = "", patterns: Mapping[str, str] | None = None) -> str:
    """Return a sentence such as `limits.rpm must be a whole number, at least 1`.

    `name`: the name of the whole value, put before the field that msgspec names. `patterns`: for
    each regular expression of a field, a description of the texts that match it ("1 to 64 letters
    or digits").
    """
    found = _PATH.search(message)
    inside = found[1] if found else ""
    message = _PATH.sub("", message)
    what = ".".join(part for part in (name, inside) if part) or "this"
    if field := _FIELD.fullmatch(message):
        owner = f"{what}." if what != "this" else ""
        missing = field[1] == "missing required"
        return f"{owner}{field[2]} is {'missing' if missing else 'not known'}"
    if value := _ENUM.fullmatch(message):
        return f"{what} can't be {value[1]}"
    if message.startswith("JSON is malformed"):
        return f"that is not JSON in UTF-8 ({message.partition(': ')[2]})"
    expected = _EXPECTED.fullmatch(message)
    if expected is None:
        return f"{what}: {message}"
    wanted = " or ".join(_KINDS.get(kind, kind) for kind in expected[1].split(" | "))
    if expected[2] is not None:
        return f"{what} must be {wanted}, not {_KINDS.get(expected[2], expected[2])}"
    bounds = expected[3] or ""
    if pattern := _PATTERN.fullmatch(bounds):
        for known, words in (patterns or {}).items():
            if repr(known) == pattern[1]:
                return f"{what} must be {words}"
    return f"{what} must be {wanted}{_bounds(bounds)}"


def _bounds(text: str) -> str:
    if length := _LENGTH.fullmatch(text):
        return f" of {_BOUNDS[length[1]]} {length[2]} character{'' if length[2] == '1' else 's'}"
    if bound := _BOUND.fullmatch(text):
        number = bound[2].removesuffix(".0")
        return f", {_BOUNDS[bound[1]]} {number}"
    return f" {text}" if text else ""
