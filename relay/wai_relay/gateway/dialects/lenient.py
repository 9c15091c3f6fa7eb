"""JSON that upstreams write and the standard does not have: clients read it all the same. Pure.

A program in JavaScript that sends a text in pieces cuts a character in two, and writes each half as
a `\\ud83d`. Python's writes `NaN` and `-Infinity`, as of a token's probability. And there are bytes
that are no UTF-8, and byte order marks.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from typing import Any, Final

MAX_BYTES: Final = 1024 * 1024
"""Of a document that is read so. It takes 50 ms at worst, in which nobody else has a turn."""

MAX_ESCAPES: Final = 20_000
"""In it, at 0.5 µs each."""

# Every escape in turn, so that each begins where it does: a whole pair, a half of one, any other.
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_REPLACEMENT: Final = "\ufffd"


def decode_leniently(data: bytes) -> Any:
    """`data` as JSON with U+FFFD for what is no character, None if it is none, or long."""
    if len(data) > MAX_BYTES or data.count(b"\\") > MAX_ESCAPES:
        return None
    text = data.removeprefix(BOM_UTF8).decode("utf-8", "replace")
    try:
        return json.loads(_ESCAPE.sub(_whole, text))
    except (ValueError, RecursionError):
        return None


def _whole(escape: re.Match[str]) -> str:
    return _REPLACEMENT if escape[1] else escape[0]
