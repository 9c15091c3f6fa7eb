"""How many pixels a picture has, from the first bytes of its base64. Pure.

PNG, GIF and WebP say it in their first thirty bytes. A JPEG says it behind its metadata, which in
photos from phones holds a preview; its segments are stepped over as far as the bytes go.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

MAX_HEAD_CHARS: Final = 96 * 1024
"""Of a picture's base64 that are looked at: metadata of 64 KiB, which is one JPEG segment, and what
stands around it."""

_MAX_SEGMENTS: Final = 32  # of a JPEG; cameras write ten
_MAX_SIDE: Final = 65_535
_DATA_URL: Final = re.compile(rb"data:[^,]{0,80};base64,")
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
# The starts of frames, which tell the size: all of these but DHT, JPG and DAC.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
_FIRST_CHARS: Final = 64


def pixels_of(base64: bytes) -> int | None:
    """The pixels of the picture whose base64 begins so (perhaps behind `data:…;base64,`); None
    where it is no picture, or its head does not tell."""
    url = _DATA_URL.match(base64)
    start = url.end() if url is not None else 0
    head = _decoded(base64, start, start + _FIRST_CHARS)
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        return _area(_big(head, 16, 4), _big(head, 20, 4))
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _area(_little(head, 6, 2), _little(head, 8, 2))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(head)
    if head.startswith(b"\xff\xd8"):
        return _jpeg(_decoded(base64, start, start + MAX_HEAD_CHARS))
    return None


def _decoded(base64: bytes, start: int, stop: int) -> bytes:
    text = base64[start:stop]
    if b"\\" in text:  # JSON may escape the slash
        text = text.replace(b"\\/", b"/")
    text = text.translate(_URL_SAFE).rstrip(b"=")
    try:
        return binascii.a2b_base64(text[: len(text) // 4 * 4])
    except binascii.Error:
        return b""


def _webp(head: bytes) -> int | None:
    kind = head[12:16]
    if kind == b"VP8 ":
        return _area(_little(head, 26, 2) & 0x3FFF, _little(head, 28, 2) & 0x3FFF)
    if kind == b"VP8L":
        bits = _little(head, 21, 4)
        return _area((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        return _area(_little(head, 24, 3) + 1, _little(head, 27, 3) + 1)
    return None


def _jpeg(data: bytes) -> int | None:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        while data[at : at + 2] == b"\xff\xff":  # a marker may be filled up in front
            at += 1
        if len(data) < at + 4 or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in _BARE:
            at += 2
        elif marker in _FRAMES:
            return _area(_big(data, at + 5, 2), _big(data, at + 7, 2))
        else:
            at += 2 + _big(data, at + 2, 2)
    return None


def _area(one: int, other: int) -> int | None:
    if not (0 < one <= _MAX_SIDE and 0 < other <= _MAX_SIDE):
        return None
    return one * other


def _big(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _little(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
