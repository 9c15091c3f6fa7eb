"""Finds the end of a JSON string in a piece of a body, as fast as a byte is found. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

DEAR_WORK: Final = 1_000
"""What a search costs that many escaped quotes made dear, in tokens of `json_scan`."""

_ESCAPED_QUOTES: Final = 16  # stepped over one by one in one go; then by expression, which is dear
_DEAR_BYTES: Final = 32 * 1024  # that are searched so at once
_NEAR_BYTES: Final = 64
_STRING_REST: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class StringEnd(NamedTuple):
    """How far a string was read. `closed`: its quote is at `at`. `escaped`: the piece ends with a
    backslash that stands for the next byte. `dear`: the search cost `DEAR_WORK`."""

    at: int
    closed: bool = False
    escaped: bool = False
    dear: bool = False


def find_end(data: bytes, pos: int) -> StringEnd:
    """Where the string ends that goes on at `data[pos]`, or how far it was looked for."""
    at = pos
    for _ in range(_ESCAPED_QUOTES):
        quote = data.find(b'"', at)
        if quote < 0:
            return StringEnd(len(data), escaped=_odd_backslashes(data, pos, len(data)))
        if not _odd_backslashes(data, pos, quote):
            return StringEnd(quote, closed=True)
        at = quote + 1
    limit = min(at + _DEAR_BYTES, len(data))
    found = _STRING_REST.match(data, at, limit)
    stop = found.end() if found else at
    if stop < limit and data[stop] == ord('"'):
        return StringEnd(stop, closed=True, dear=True)
    if stop < limit == len(data):  # what stopped the match is a last, lone backslash
        return StringEnd(limit, escaped=True, dear=True)
    return StringEnd(stop, dear=True)


def _odd_backslashes(data: bytes, start: int, end: int) -> bool:
    """Whether an odd number of backslashes stands before `data[end]`, back to `start`."""
    if end == start or data[end - 1] != ord("\\"):
        return False
    near = data[max(start, end - _NEAR_BYTES) : end]
    run = len(near) - len(near.rstrip(b"\\"))
    if run == len(near):
        far = data[start:end]
        run = len(far) - len(far.rstrip(b"\\"))
    return run % 2 == 1
