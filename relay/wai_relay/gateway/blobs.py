"""Which strings of a prompt are pictures or recordings in base64. Pure.

A picture or a recording is one long base64 string, whichever dialect it stands in. Shorter ones
cost no more tokens as text than as a picture, so short messages need not be searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from .pictures import MAX_HEAD_CHARS

LEAST_BLOB_CHARS: Final = 3000
LEAST_BLOB_BYTES: Final = 3072  # of a message that may hold one
HEAD_CHARS: Final = 4096  # of a string, by which it is judged
_TYPE_CHARS: Final = 64  # of a picture's base64, which tell its type

# Possessive, so that nothing is searched twice: a search costs at most 10 ms for 1 MiB.
_BLOB: Final = re.compile(rb'"(?:data:[^"]{0,80};base64,)?+[A-Za-z0-9+/=\\_-]{3000,}+"')
_BEFORE: Final = re.compile(
    rb'(?:"(?:url|image_url|data|file_data|images)"\s*+:\s*+(?:\[\s*+)?+|,\s*+)$'
)
MAX_BEFORE_BYTES: Final = 64  # a name and the white space around its colon
_URL: Final = re.compile(rb'data:[^"]{0,80};base64,')
_HEAD: Final = re.compile(rb"[A-Za-z0-9+/=\\_-]*+")


def blobs_in(part: bytes) -> Iterator[tuple[int, int]]:
    """Where the pictures and recordings stand in a message, with their quotes."""
    for blob in _BLOB.finditer(part):
        start = blob.start()
        if _BEFORE.search(part, max(start - MAX_BEFORE_BYTES, 0), start):
            yield start, blob.end()


class BlobWatch:
    """Tells whether a string is a picture that comes in pieces of a body. One string at a time."""

    __slots__ = ("_head",)

    def __init__(self) -> None:
        self._head: bytearray | None = None

    @property
    def likely(self) -> bool:
        """Whether all that came of the string may be a picture."""
        return self._head is not None

    def take(self, data: bytes, start: int, stop: int, before: bytes | None) -> None:
        """The string's next bytes, `data[start:stop]`. `before`: what stands before it, of which
        the last `MAX_BEFORE_BYTES` are enough, where it begins here."""
        if before is not None:
            self._head = bytearray() if _BEFORE.search(before) is not None else None
        if self._head is None:
            return
        if data.find(b" ", start, stop) >= 0:  # is in no base64, and soon in any other text
            self._head = None
        else:
            self._head += data[start : min(stop, start + MAX_HEAD_CHARS - len(self._head))]

    def end(self, size: int) -> Blob | None:
        """The string is over, and had `size` bytes: what is known of it if it is a picture."""
        head, self._head = self._head, None
        if head is None or size < LEAST_BLOB_CHARS:
            return None
        url = _URL.match(head)
        begin = url.end() if url is not None else 0
        if size - begin < LEAST_BLOB_CHARS:
            return None
        if _HEAD.fullmatch(head, begin, min(len(head), begin + HEAD_CHARS)) is None:
            return None
        rest = begin + _TYPE_CHARS
        rest += head[rest - 1] == ord("\\")  # an escaped slash is not cut in two
        return Blob(bytes(head), rest)


class Blob(NamedTuple):
    """A picture's or recording's first bytes, and where what tells its type is over."""

    head: bytes
    rest: int
