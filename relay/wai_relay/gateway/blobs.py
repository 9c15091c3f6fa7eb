"""Which strings of a prompt are pictures or recordings in base64. Pure.

A picture or a recording is one long base64 string, whichever dialect it stands in. Shorter ones
cost no more tokens as text than as a picture, so short messages need not be searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

LEAST_BLOB_CHARS: Final = 3000
LEAST_BLOB_BYTES: Final = 3072  # of a message that may hold one
HEAD_CHARS: Final = 4096  # of a string, by which it is judged

# Possessive, so that nothing is searched twice: a search costs at most 10 ms for 1 MiB.
_BLOB: Final = re.compile(rb'"(?:data:[^"]{0,80};base64,)?+[A-Za-z0-9+/=\\_-]{3000,}+"')
_BEFORE: Final = re.compile(
    rb'(?:"(?:url|image_url|data|file_data|images)"\s*+:\s*+(?:\[\s*+)?+|,\s*+)$'
)
MAX_BEFORE_BYTES: Final = 64  # a name and the white space around its colon
_URL: Final = re.compile(rb'data:[^"]{0,80};base64,')
_HEAD: Final = re.compile(rb"[A-Za-z0-9+/=\\_-]*+")
_NEVER: Final = (b" ", b".")  # in no base64, and soon in any other text


def blobs_in(part: bytes) -> Iterator[tuple[int, int]]:
    """Where the pictures and recordings stand in a message, with their quotes."""
    for blob in _BLOB.finditer(part):
        start = blob.start()
        if _BEFORE.search(part, max(start - MAX_BEFORE_BYTES, 0), start):
            yield start, blob.end()


def may_follow(before: bytes) -> bool:
    """Whether a picture may stand behind `before`, of which the last bytes are enough."""
    return _BEFORE.search(before) is not None


def may_be_blob(data: bytes, start: int, stop: int) -> bool:
    """Whether `data[start:stop]` may be part of a picture, at the speed of a search for a byte."""
    return all(data.find(char, start, stop) < 0 for char in _NEVER)


def begin_of_blob(head: bytes, size: int) -> int | None:
    """Where the base64 begins in a string of `size` bytes that begins with `head`, if all of it may
    be a picture; None if it is none."""
    url = _URL.match(head)
    start = url.end() if url is not None else 0
    if size - start < LEAST_BLOB_CHARS:
        return None
    whole = _HEAD.fullmatch(head, start, min(len(head), start + HEAD_CHARS))
    return None if whole is None else start
