"""Finds the model's name in a long body as it streams past, without holding the body. Pure.

Two scanners with one face: JSON (the top level's `model`) and multipart/form-data (the part named
`model`), or whichever field a dialect has for it. Both take chunks cut anywhere. They judge no more
of the body than they must; the upstream reads the rest.
"""

from __future__ import annotations

import functools
import re
from typing import Final, Protocol

import msgspec

from wai_protocol.errors import RequestError
from wai_protocol.status import MAX_NAME_CHARS

from .bodies import check_model

MAX_DEPTH: Final = 512  # deeper JSON is an attack on somebody's parser
# Brackets, strings and pairs: each costs 0.3 µs here, so this bounds what a hostile body costs.
MAX_TOKENS: Final = 2_000_000
MAX_TOKEN_BYTES: Final = 6 * MAX_NAME_CHARS  # a name with every character escaped as \uXXXX
MAX_PART_HEAD_BYTES: Final = 8192  # a form part's headers; the real ones are under 300 bytes
MAX_BOUNDARY_CHARS: Final = 70  # RFC 2046 section 5.1.1

_STRING_REST: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_TOP: Final = re.compile(rb'["{}\[\],:]')
_DEEP: Final = re.compile(rb'["{}\[\]]')
_BOUNDARY: Final = re.compile(r'boundary=(?:"([^"]+)"|([^\s;"]+))', re.I)


class ModelScanner(Protocol):
    """Takes a body in pieces. `model` is set when it was found, and then `start` and `end`: where
    the value stands, in bytes from the body's first (a JSON string's quotes included)."""

    model: str | None
    start: int
    end: int

    def feed(self, data: bytes) -> None:
        """The next piece. Raises `RequestError` on what no upstream should be sent."""

    def encode(self, model: str) -> bytes:
        """`model` as it would stand between `start` and `end`."""


class JsonModelScanner:
    """The top-level `field` of a JSON object. It goes on looking after it has found one: a second
    one, which an upstream's parser would prefer, would get past a key's list of models."""

    def __init__(self, field: str = "model") -> None:
        self.model: str | None = None
        self._field = field
        self._field_key = field.encode()
        self.start = self.end = 0
        self._at = 0  # bytes before the current piece
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the last piece ended behind a backslash
        self._text: bytearray | None = None  # the string being collected, where it may matter
        self._text_start = 0
        self._key = b""
        self._is_value = False  # behind the colon of a top-level pair
        self._begun = False
        self._tokens = 0

    def feed(self, data: bytes) -> None:
        """See `ModelScanner`."""
        pos, end = 0, len(data)
        if not self._begun:
            pos = end - len(data.lstrip())
            if pos < end:
                self._begin(data[pos])
                pos += 1
        while pos < end:
            if self._in_string:
                pos = self._string(data, pos)
                continue
            token = (_TOP if self._depth == 1 else _DEEP).search(data, pos)
            if token is None:
                break
            pos = token.end()
            self._tokens += 1
            self._token(token[0], self._at + token.start())
        self._at += end
        if self._tokens > MAX_TOKENS:
            raise RequestError("The request body has too many values.")

    def encode(self, model: str) -> bytes:
        """See `ModelScanner`."""
        return msgspec.json.encode(model)

    def _begin(self, first: int) -> None:
        if first != ord("{"):
            raise RequestError("The request body must be a JSON object.")
        self._begun = True
        self._depth = 1

    def _token(self, token: bytes, at: int) -> None:
        match token:
            case b'"':
                self._in_string = True
                wanted = self._depth == 1 and (not self._is_value or self._key == self._field_key)
                self._text = bytearray() if wanted else None
                self._text_start = at
            case b"{" | b"[":
                if self._depth == 1 and self._key == self._field_key:
                    raise RequestError(f"`{self._field}` must be a string.")
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise RequestError(f"The request body is nested deeper than {MAX_DEPTH}.")
            case b"}" | b"]":
                self._depth -= 1
                if self._depth < 0:
                    raise RequestError("The request body is not valid JSON: a bracket too many.")
            case b":":
                self._is_value = True
            case _:
                if self._key == self._field_key and self.model is None:
                    raise RequestError(f"`{self._field}` must be a string.")
                self._is_value = False
                self._key = b""

    def _string(self, data: bytes, pos: int) -> int:
        """Go on inside a string; the position behind what was taken."""
        start = pos
        if self._escaped:
            pos += 1
            self._escaped = False
        found = _STRING_REST.match(data, pos)
        stop = found.end() if found else pos
        closed = stop < len(data) and data[stop] == ord('"')
        if self._text is not None:
            self._text += data[start : stop if closed else len(data)]
            if len(self._text) > MAX_TOKEN_BYTES:
                self._too_long()
        if not closed:
            self._escaped = stop < len(data)  # what stopped the match is a last, lone backslash
            return len(data)
        self._in_string = False
        if self._text is not None:
            self._collected(self._text, self._at + stop + 1)
        return stop + 1

    def _too_long(self) -> None:
        if self._is_value:
            raise RequestError(
                f"`{self._field}` must have between 1 and {MAX_NAME_CHARS} characters."
            )
        self._text = None
        self._key = b""

    def _collected(self, text: bytearray, end: int) -> None:
        try:
            value = msgspec.json.decode(b'"' + text + b'"', type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise RequestError("The request body is not valid JSON in UTF-8.") from None
        if not self._is_value:
            self._take_key(value)
        elif self.model is None:
            self.model = check_model(value, self._field)
            self.start, self.end = self._text_start, end

    def _take_key(self, key: str) -> None:
        self._key = key.encode("utf-8", "surrogatepass")
        if key.lower() == self._field.lower():
            if self.model is not None:
                raise RequestError(f"The request names `{self._field}` twice.")
            if key != self._field:
                raise RequestError(
                    f"Unknown field `{key}`; the model's name goes into `{self._field}`."
                )


class FormModelScanner:
    """The part named `field` of a multipart/form-data body (audio uploads)."""

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
        """See `ModelScanner`."""
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

    def encode(self, model: str) -> bytes:
        """See `ModelScanner`."""
        return model.encode()

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
            if len(self._window) - start > MAX_TOKEN_BYTES + len(self._delimiter) + 2:
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
