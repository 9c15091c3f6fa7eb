"""HTTP/1.1 for a client: write request heads; read response heads and body framing. No I/O.

Used by the node towards its upstreams and by the relay towards cloud providers. `ChunkedBody` also
reads the request bodies of the relay's callers. The readers are strict wherever a tolerant one
could be made to read one message as two: bare LF, obs-fold, Content-Length beside
Transfer-Encoding, repeated Content-Length and control characters are refused as soon as they
arrive. The result does not depend on how the bytes are split into reads. Request heads are parsed
in `wai_relay.http`.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

import msgspec

from .errors import Fault, LocalProtocolError, RemoteProtocolError
from .limits import MAX_HEADERS
from .surface import Headers
from .websocket import ACCEPT_FIELD, KEY_FIELD, VERSION, VERSION_FIELD

MAX_HEAD_BYTES: Final = 32 * 1024  # llama-server sends 0.3 kB, cloud providers with cookies up to 8
# Status 100, 102 and 103: servers send one or two. A peer that sends more only delays the answer.
MAX_INTERIM_RESPONSES: Final = 8
MAX_CHUNK_LINE_BYTES: Final = 256  # a chunk's size, and perhaps an extension
# Extensions of all chunks together may have this many bytes more than the payload: some servers pad
# each size with blanks. A peer that sends more costs the reader work for nothing.
MAX_EXTENSION_BYTES: Final = 8 * 1024
MAX_TRAILER_BYTES: Final = 8 * 1024  # trailers are read and dropped
MAX_CHUNKED_BYTES: Final = (1 << 48) - 1  # 12 hexadecimal digits, more than any real body
MAX_BODY_DIGITS: Final = 15  # below 2**53, which servers and JSON readers represent exactly

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: .*)?")
_TARGET: Final = re.compile(r"/[\x21-\x22\x24-\x7e]*")  # origin form: visible ASCII without "#"
# An extension or blanks may follow a chunk's size. The partial patterns match the beginning of a
# line: a line that cannot become valid is refused before its end has arrived.
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]+)(?:;[^\x00-\x08\x0a-\x1f\x7f]*|[ \t]*)")
_PARTIAL_CHUNK_LINE: Final = re.compile(rb"[0-9A-Fa-f]+(?:;[^\x00-\x08\x0a-\x1f\x7f]*|[ \t]*)\r?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")
_PARTIAL_TRAILER: Final = re.compile(
    rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?::[^\x00-\x08\x0a-\x1f\x7f]*\r?)?|\r"
)
# Not allowed in a head: a control character, or one half of a CRLF without the other.
_NOT_IN_HEAD: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]")
_CHUNK_BEGINS: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})


def request_head(
    method: str,
    target: str,
    headers: Headers,
    *,
    authority: bytes,
    body_length: int | None,
    websocket_key: bytes = b"",
) -> bytes:
    """Encode the head of a request.

    `target` is path and query; `body_length` is the body's exact length in bytes, None for a
    chunked body. `websocket_key`: ask for a WebSocket, with this key. Raises `LocalProtocolError`
    for a value that could end the head early or start another request, and for headers that set the
    framing.
    """
    if not _TOKEN.fullmatch(method.encode()) or not _TARGET.fullmatch(target):
        raise LocalProtocolError("the request's method or target is not allowed in HTTP")
    lines = [f"{method} {target} HTTP/1.1".encode("ascii"), b"host: " + authority]
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or _CONTROL.search(value) or name.lower() in _FRAMING:
            raise LocalProtocolError("a header of the request is not allowed in HTTP")
        lines.append(name + b": " + value)
    if websocket_key:
        lines += (b"connection: Upgrade", b"upgrade: websocket")
        lines += (VERSION_FIELD + b": " + VERSION, KEY_FIELD + b": " + websocket_key)
    elif body_length is None:
        lines.append(b"transfer-encoding: chunked")
    elif body_length or method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
        lines.append(b"content-length: %d" % body_length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Encode `data` as one chunk. It must not be empty: an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"


class BodyFraming(Protocol):
    """Removes the framing from a response's body."""

    ended: bool
    """Whether the whole body was read."""
    surplus: bool
    """Whether bytes came after the body's end; such a connection can't be used again."""

    def receive_data(self, data: bytes) -> bytes:
        """Return all payload in `data`, joined.

        Raises `RemoteProtocolError` for invalid framing.
        """

    def receive_eof(self) -> None:
        """Note that the peer closed. Raises `RemoteProtocolError` if the body is incomplete."""


class FixedLengthBody:
    """A body of `length` bytes; 0 for an answer without a body."""

    __slots__ = ("_left", "ended", "surplus")

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0
        self.surplus = False

    def receive_data(self, data: bytes) -> bytes:
        """See `BodyFraming`."""
        self._left -= len(data)
        if self._left > 0:
            return data
        self.ended = True
        if self._left == 0:
            return data
        self.surplus = True
        payload = data[: self._left]
        self._left = 0
        return payload

    def receive_eof(self) -> None:
        """See `BodyFraming`."""
        if not self.ended:
            raise _broken(f"the connection closed {self._left} bytes before the body's end")


class UntilCloseBody:
    """A body that ends when its connection closes (HTTP/1.0, or no framing header)."""

    __slots__ = ("ended", "surplus")

    def __init__(self) -> None:
        self.ended = False
        self.surplus = False

    def receive_data(self, data: bytes) -> bytes:
        """See `BodyFraming`."""
        return data

    def receive_eof(self) -> None:
        """See `BodyFraming`."""
        self.ended = True


class ChunkedBody:
    """A chunked body (RFC 9112 section 7.1). Extensions and trailers are checked and dropped.

    `limit_bytes`: the maximum size of the payload; a chunk that would exceed it is refused when its
    size is read, with the fault `over_limit`.
    """

    __slots__ = (
        "_extension_bytes",
        "_held",
        "_in_trailer",
        "_left",
        "_limit_bytes",
        "_over_limit",
        "_payload_bytes",
        "_trailer_bytes",
        "ended",
        "rest",
        "surplus",
    )

    def __init__(
        self, limit_bytes: int = MAX_CHUNKED_BYTES, over_limit: Fault = Fault.UPSTREAM_BROKE
    ) -> None:
        self._limit_bytes = limit_bytes
        self._over_limit = over_limit
        self._held = b""  # the beginning of an incomplete line
        self._left = 0  # bytes missing from the current chunk, its closing CRLF included
        self._payload_bytes = 0  # sum of the sizes of all chunks so far
        self._extension_bytes = 0
        self._in_trailer = False
        self._trailer_bytes = 0
        self.ended = False
        self.surplus = False
        self.rest = b""
        """The bytes after the body's end that came in the same call as the end."""

    @property
    def left_bytes(self) -> int:
        """Return how many bytes of the current chunk are missing, its closing CRLF included."""
        return self._left

    def receive_data(self, data: bytes) -> bytes:
        """See `BodyFraming`. The payload of several chunks is returned as one bytes object."""
        if not (self._left or self._held or self._in_trailer):
            # A token usually arrives as one whole chunk in one read: this fast path takes 0.7 µs,
            # the general one below 2.0 µs.
            begins = _CHUNK_BEGINS.match(data)
            if begins is not None and data.endswith(b"\r\n"):
                start, size = begins.end(), int(begins[1], 16)
                if size and start + size + 2 == len(data):
                    self._count_payload(size)
                    return data[start:-2]
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self._left:
                at = self._take_payload(data, at, pieces)
                continue
            if self.ended:
                self.surplus = True
                self.rest = data[at:]
                break
            line_end = data.find(b"\n", at)
            if line_end < 0:
                self._hold(data[at:])
                break
            self._take_line(data[at : line_end + 1])
            at = line_end + 1
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def receive_eof(self) -> None:
        """See `BodyFraming`."""
        if not self.ended:
            raise _broken("the connection closed inside a chunked body")

    def _take_payload(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Read the rest of this chunk and its CRLF from `data` at `at`, return the new position."""
        available = len(data) - at
        payload = min(self._left - 2, available)
        if payload > 0:
            pieces.append(data[at : at + payload])
            self._left -= payload
            at += payload
        while self._left in (1, 2) and at < len(data):
            if data[at] != b"\n\r"[self._left - 1]:
                raise _broken("a chunk is longer than its announced size")
            self._left -= 1
            at += 1
        return at

    def _take_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise _broken("a chunk's line does not end in CRLF")
        if self._in_trailer:
            self._take_trailer(line)
            return
        match = _CHUNK_LINE.fullmatch(line, 0, len(line) - 2)
        if match is None or len(line) > MAX_CHUNK_LINE_BYTES:
            raise _broken("illegal chunk header: the chunk's size can't be read")
        size = int(match[1], 16)
        self._count_payload(size)
        self._extension_bytes += len(line) - 2 - len(match[1])
        if self._extension_bytes > MAX_EXTENSION_BYTES + self._payload_bytes:
            raise _broken(f"the chunk extensions are longer than {MAX_EXTENSION_BYTES} bytes")
        if size:
            self._left = size + 2
        else:
            self._in_trailer = True

    def _count_payload(self, size: int) -> None:
        self._payload_bytes += size
        if self._payload_bytes > self._limit_bytes:
            raise RemoteProtocolError(
                f"the chunked body is longer than {self._limit_bytes} bytes", self._over_limit
            )

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise _broken(f"the trailers are longer than {MAX_TRAILER_BYTES} bytes")
        self.ended = line == b"\r\n"
        if not self.ended and not _TRAILER.fullmatch(line, 0, len(line) - 2):
            raise _broken("a trailer of the chunked body can't be read")

    def _hold(self, start: bytes) -> None:
        limit = MAX_TRAILER_BYTES if self._in_trailer else MAX_CHUNK_LINE_BYTES
        if len(start) > limit:
            raise _broken(f"a line of the chunked body is longer than {limit} bytes")
        if self._in_trailer:
            if not _PARTIAL_TRAILER.fullmatch(start):
                raise _broken("a trailer of the chunked body can't be read")
        elif not _PARTIAL_CHUNK_LINE.fullmatch(start):
            raise _broken("illegal chunk header: the chunk's size can't be read")
        self._held = start


class ResponseHead(msgspec.Struct, frozen=True):
    """A final response's head. Header names are lower-case.

    `keep_alive`: the connection may be used for another request.
    """

    status: int
    headers: Headers
    body: BodyFraming
    keep_alive: bool


class ResponseHeadReader:
    """Reads the head of the first response that is not an interim (1xx) one.

    `accept`: the `Sec-WebSocket-Accept` that a 101 must have (`websocket.accept_token`); its body
    is then what follows, until the connection closes. Without it a 101 is a breach.
    """

    __slots__ = ("_accept", "_buffer", "_interim", "_method", "_searched", "rest")

    def __init__(self, method: str, accept: bytes = b"") -> None:
        self._method = method
        self._accept = accept
        self._buffer = bytearray()
        self._searched = 0
        self._interim = 0
        self.rest = b""
        """The bytes after the head: the first ones of the body."""

    def receive_data(self, data: bytes) -> ResponseHead | None:
        """Return the head once it is complete, else None. Raises `RemoteProtocolError`."""
        buffer = self._buffer
        buffer += data
        while True:
            if buffer and not b"HTTP/1.".startswith(buffer[:7]):
                raise _broken("the upstream does not answer in HTTP/1")
            end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
            if end > MAX_HEAD_BYTES or (end < 0 and len(buffer) > MAX_HEAD_BYTES):
                raise _broken(f"the response's head is longer than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                if _NOT_IN_HEAD.search(buffer, max(0, self._searched - 1)):
                    raise _broken("the response's head holds a control character or a bare LF")
                self._searched = len(buffer)
                return None
            minor, status, headers = _parse_head(bytes(buffer[:end]))
            del buffer[: end + 4]
            self._searched = 0
            switched = status == 101 and bool(self._accept)
            if status >= 200 or switched:
                self.rest = bytes(buffer)
                buffer.clear()
                if switched:
                    return _websocket(headers, self._accept)
                return _frame(self._method, minor, status, headers)
            self._interim += 1
            if status == 101 or self._interim > MAX_INTERIM_RESPONSES:
                raise _broken(f"the upstream answered {status}, which was not asked for")


def _parse_head(block: bytes) -> tuple[int, int, Headers]:
    """Parse a head without its closing empty line: (minor version, status, headers)."""
    lines = block.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise _broken("the response's status line can't be read")
    if _CONTROL.search(b"".join(lines)):
        raise _broken("the response's head holds a control character")
    if len(lines) > MAX_HEADERS + 1:
        raise _broken(f"the response has more than {MAX_HEADERS} header fields")
    headers: Headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _broken("a header line of the response can't be read")
        headers.append((name.lower(), value.strip(b" \t")))
    return int(match[1]), int(match[2]), headers


def _frame(method: str, minor: int, status: int, headers: Headers) -> ResponseHead:
    """Determine the body's framing (RFC 9112 section 6.3) and whether the connection is kept."""
    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: list[bytes] = []
    for name, value in headers:
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
        elif name == b"connection":
            options += [option.strip() for option in value.lower().split(b",")]
    keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
    if codings and (lengths or minor == 0 or codings != [b"chunked"]):
        raise _broken("the response's framing is ambiguous")
    if lengths and (len(lengths) > 1 or not lengths[0].isdigit()):
        raise _broken("the response's Content-Length can't be read")
    if lengths and len(lengths[0]) > MAX_BODY_DIGITS:
        raise _broken("the response's Content-Length is too large")
    body: BodyFraming
    if method == "HEAD" or status in (204, 304):
        body = FixedLengthBody(0)
    elif codings:
        body = ChunkedBody()
    elif lengths:
        body = FixedLengthBody(int(lengths[0]))
    else:
        body, keep_alive = UntilCloseBody(), False
    return ResponseHead(status, headers, body, keep_alive)


def _websocket(headers: Headers, accept: bytes) -> ResponseHead:
    """Check a 101 (RFC 6455 section 4.1): the server must have read the handshake, and must not
    use an extension, since none was offered."""
    fields = dict(reversed(headers))
    if fields.get(b"upgrade", b"").lower() != b"websocket" or fields.get(ACCEPT_FIELD) != accept:
        raise _broken("the upstream's 101 does not accept the WebSocket")
    if b"sec-websocket-extensions" in fields:
        raise _broken("the upstream uses a WebSocket extension that was not offered")
    return ResponseHead(101, headers, UntilCloseBody(), keep_alive=False)


def _broken(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, Fault.UPSTREAM_BROKE)
