"""Finds the model's name in a form (audio uploads) as it streams past, without holding it. Pure.

Pieces may be cut anywhere. It judges no more of the form than it must; the upstream reads the rest.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from wai_protocol.errors import RequestError
from wai_protocol.status import MAX_NAME_CHARS

from .bodies import check_model

MAX_NAME_BYTES: Final = 6 * MAX_NAME_CHARS  # with every character of four bytes, and some room
MAX_PART_HEAD_BYTES: Final = 8192  # a form part's headers; the real ones are under 300 bytes
MAX_BOUNDARY_CHARS: Final = 70  # RFC 2046 section 5.1.1
TURN_BYTES: Final = 16 * 1024
"""Of a form that are read in one turn of the event loop: 5 ms if it has as many parts as fit."""

_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"]+)"|([^\s;"]+))', re.I)


class FormModelScanner:
    """The part named `field` of a multipart/form-data body. `model` is set when it was found, and
    then `start` and `end`: where it stands, in bytes from the body's first."""

    def __init__(self, content_type: bytes, field: str = "model") -> None:
        found = _BOUNDARY.search(content_type.decode("latin-1"))
        boundary = (found[1] or found[2]) if found else ""
        if not 0 < len(boundary) <= MAX_BOUNDARY_CHARS:
            raise RequestError("The Content-Type header has no usable multipart boundary.")
        self.model: str | None = None
        self.start = self.end = 0
        self._field = field
        self._part_name = _part_name(field)
        self._delimiter = b"--" + boundary.encode("latin-1")
        self._window = b""  # what may still matter: an unfinished delimiter, head or model value
        self._at = 0  # bytes before the window
        self._in_part = False  # the window starts behind a delimiter

    def feed(self, data: bytes) -> None:
        """The next piece. Raises `RequestError` on what no upstream should be sent."""
        if self._passes(data):
            return
        self._window += data
        while self._step():
            pass

    def _passes(self, data: bytes) -> bool:
        """Whether `data` lies wholly within a part that is none of ours, as nearly all of an
        upload does: then it is searched, and not copied."""
        overlap = len(self._delimiter) - 1
        if self._in_part or len(self._window) > overlap or len(data) < overlap:
            return False
        if self._delimiter in data or self._delimiter in self._window + data[:overlap]:
            return False
        self._at += len(self._window) + len(data) - overlap
        self._window = data[-overlap:]
        return True

    def _step(self) -> bool:
        """Take one delimiter or one part's head; False when more bytes are needed."""
        if not self._in_part:
            found = self._window.find(self._delimiter)
            if found < 0:
                self._drop(max(len(self._window) - len(self._delimiter) + 1, 0))
                return False
            self._drop(found + len(self._delimiter))
            self._in_part = True
        head_end = self._window.find(b"\r\n\r\n")
        if head_end < 0:
            if len(self._window) > MAX_PART_HEAD_BYTES:
                raise RequestError("A part of the form has too long a head.")
            return False
        if self._part_name.search(self._window[:head_end]):
            return self._take_model(head_end + 4)
        self._drop(head_end + 2)  # an empty part's delimiter starts with the head's last CRLF
        self._in_part = False
        return True

    def _take_model(self, start: int) -> bool:
        stop = self._window.find(b"\r\n" + self._delimiter, start)
        if stop < 0:
            if len(self._window) - start > MAX_NAME_BYTES + len(self._delimiter) + 2:
                raise RequestError(
                    f"`{self._field}` must have between 1 and {MAX_NAME_CHARS} characters."
                )
            return False
        if self.model is not None:
            raise RequestError(f"The form names `{self._field}` twice.")
        try:
            self.model = check_model(self._window[start:stop].decode(), self._field)
        except UnicodeDecodeError:
            raise RequestError(f"`{self._field}` is not UTF-8.") from None
        self.start, self.end = self._at + start, self._at + stop
        self._drop(stop)
        self._in_part = False
        return True

    def _drop(self, n: int) -> None:
        self._window = self._window[n:]
        self._at += n


@functools.cache
def _part_name(field: str) -> re.Pattern[bytes]:
    """Finds the head of the form part with this name."""
    name = re.escape(field.encode())
    return re.compile(
        rb'content-disposition:[^\r\n]*;\s*name="?' + name + rb'"?\s*(?:;|\r|$)', re.I
    )
