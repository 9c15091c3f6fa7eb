"""Encode and decode the frames of `wai/1`: msgpack arrays that begin with a type (SPEC section 1).

Types below 16 belong to one connection: they have no offset and are never replayed. Types from 16
on belong to the session: each of their bytes has an offset. This module checks types and bounds
of fields; what a frame means is decided by `session`. DATA and ACK are the most frequent frames and
are read by `session` directly.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack
import msgspec

from .errors import Fault, LocalProtocolError, RemoteProtocolError
from .fields import check_fields, check_request_line
from .limits import (
    MAX_DATA_BYTES,
    MAX_EVENT_BYTES,
    MAX_FRAME_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_METHOD_CHARS,
    MAX_REASON_CHARS,
)
from .surface import Headers


class FrameType(enum.IntEnum):
    """The type of a frame, which is its first element."""

    HELLO = 0
    CHALLENGE = 1
    PROOF = 2
    WELCOME = 3
    REFUSE = 4
    ACK = 5
    PING = 6
    PONG = 7

    OPEN = 16
    HEADERS = 17
    DATA = 18
    END = 19
    RESET = 20
    CREDIT = 21
    STATUS = 22
    CALL = 23
    REPLY = 24
    EVENT = 25
    GOAWAY = 26


FIRST_SESSION_TYPE: Final = 16
# In Python 3.11 to look a member of an enum up takes as long as a call, so the types that each
# request has are looked up once.
_OPEN: Final = int(FrameType.OPEN)
_HEADERS: Final = int(FrameType.HEADERS)
_DATA: Final = int(FrameType.DATA)
_END: Final = int(FrameType.END)


class Open(msgspec.Struct, frozen=True):
    """A request's head, sent by the relay.

    `model` selects the upstream on the node; `end`: the request has no body.
    """

    stream: int
    method: str
    path: str
    headers: Headers
    model: str
    end: bool


class HeadersFrame(msgspec.Struct, frozen=True):
    """HEADERS: a response's head, sent by the node once per stream."""

    stream: int
    status: int
    headers: Headers


class End(msgspec.Struct, frozen=True):
    """No more DATA in this direction."""

    stream: int


class Reset(msgspec.Struct, frozen=True):
    """Ends the stream in both directions; `code` is a fault's wire code."""

    stream: int
    code: int
    reason: str


class Credit(msgspec.Struct, frozen=True):
    """`increment` more bytes of DATA may be sent on the stream."""

    stream: int
    increment: int


class Status(msgspec.Struct, frozen=True):
    """What the node can serve now: the map of `NodeStatus`."""

    value: dict[str, Any]


class Call(msgspec.Struct, frozen=True):
    """The relay asks the node to do something."""

    call: int
    method: str
    params: dict[str, Any]


class Reply(msgspec.Struct, frozen=True):
    """The answer to a CALL. If not `ok`, `value` is a map with `code` (wire code) and `message`."""

    call: int
    ok: bool
    value: Any


class Event(msgspec.Struct, frozen=True):
    """Something happened on the node; `call` is the CALL that it belongs to, or 0."""

    call: int
    name: str
    value: Any


class GoAway(msgspec.Struct, frozen=True):
    """Announces a planned end: no new streams; those in progress go on to their end.

    `reconnect_in_ms`: after this time the node should begin a new session (None: it need not).
    """

    code: int
    reason: str
    reconnect_in_ms: int | None


SessionFrame: TypeAlias = (
    Open | HeadersFrame | End | Reset | Credit | Status | Call | Reply | Event | GoAway
)

pack: Final[Callable[[object], bytes]] = msgpack.Packer(autoreset=True).pack


_LONG_BYTES: Final = 256  # from this size on, msgpack's bin has a length field of two bytes


def encode_data(stream: int, data: bytes | memoryview) -> bytes:
    """Encode a DATA frame. `data` has at most `MAX_DATA_BYTES`."""
    size = len(data)
    if size < _LONG_BYTES:
        return pack((_DATA, stream, data))
    # The same bytes as msgpack writes, with one copy of the payload instead of two.
    return b"".join((b"\x93\x12", pack(stream), b"\xc5", size.to_bytes(2, "big"), data))


def encode_open(
    stream: int, method: str, path: str, headers: Headers, model: str, *, end: bool
) -> bytes:
    """Encode an OPEN frame; see `encode`."""
    check_request_line(method, path, LocalProtocolError)
    flat = _flatten(headers, method + path + model)
    return pack((_OPEN, stream, method, path, flat, model, end))


def encode_headers(stream: int, status: int, headers: Headers) -> bytes:
    """Encode a HEADERS frame; see `encode`."""
    return pack((_HEADERS, stream, status, _flatten(headers)))


def encode_end(stream: int) -> bytes:
    """Encode an END frame."""
    return pack((_END, stream))


def encode(frame: SessionFrame) -> bytes:
    """Encode any session frame except DATA.

    Raises `LocalProtocolError` for a frame that the peer would refuse, because a refused frame ends
    the whole session.
    """
    t = FrameType
    match frame:
        case Open(stream, method, path, headers, model, end):
            return encode_open(stream, method, path, headers, model, end=end)
        case HeadersFrame(stream, status, headers):
            return encode_headers(stream, status, headers)
        case End(stream):
            return encode_end(stream)
        case Reset(stream, code, reason):
            return pack((t.RESET, stream, code, reason))
        case Credit(stream, increment):
            return pack((t.CREDIT, stream, increment))
        case Status(value):
            return pack((t.STATUS, value))
        case Call(call, method, params):
            return pack((t.CALL, call, method, params))
        case Reply(call, ok, value):
            return pack((t.REPLY, call, ok, value))
        case Event(call, name, value):
            return _check_event_size(pack((t.EVENT, call, name, value)))
        case GoAway(code, reason, reconnect_in_ms):
            return pack((t.GOAWAY, code, reason, reconnect_in_ms))


def decode(item: list[Any], size: int = 0) -> SessionFrame:
    """Check one unpacked session frame (not DATA), and return it as an object.

    `size` is its encoded size in bytes. Elements beyond those known here are ignored: a newer minor
    version may append some. Raises `RemoteProtocolError`.
    """
    shape = _SHAPES.get(item[0])
    if shape is None:
        raise RemoteProtocolError(f"unknown frame type {item[0]!r}")
    frame_class, types, length, numbers = shape
    if len(item) < length:
        raise RemoteProtocolError(f"{frame_class.__name__} frame is too short")
    fields = item[1:length]
    if list(map(type, item[1 : len(types) + 1])) != types:
        raise RemoteProtocolError(f"{frame_class.__name__} frame has a field of the wrong type")
    for number in fields[:numbers]:
        if not 0 <= number < 1 << 62:
            raise RemoteProtocolError(f"{frame_class.__name__} frame has a number out of range")
    if frame_class is Open:
        _, method, path, flat, model, _ = fields
        fields[3] = _pairs(flat, method + path + model)
        check_request_line(method, path, RemoteProtocolError)
    elif frame_class is HeadersFrame:
        fields[2] = _pairs(fields[2])
    elif frame_class in _WITH_TEXT:
        _check_text(frame_class, fields, size)
    frame: SessionFrame = frame_class(*fields)
    return frame


_WITH_TEXT: Final = frozenset({Reset, Call, Event, GoAway})


def _check_text(frame_class: type, fields: list[Any], size: int) -> None:
    """Check the length of the text in a frame. A reason is shown to people and logged."""
    if frame_class is Reset:
        _check_reason(fields[2])
    elif frame_class is GoAway:
        _check_reason(fields[1])
        if fields[2] is not None and not _is_number(fields[2]):
            raise RemoteProtocolError("GoAway frame has a field of the wrong type")
    else:
        if len(fields[1]) > MAX_METHOD_CHARS:
            raise RemoteProtocolError(f"{frame_class.__name__} frame has too long a name")
        if frame_class is Event and size > MAX_EVENT_BYTES:
            raise RemoteProtocolError(f"an EVENT is larger than {MAX_EVENT_BYTES} bytes")


def _check_reason(text: str) -> None:
    if len(text) > MAX_REASON_CHARS:
        raise RemoteProtocolError(f"a reason is longer than {MAX_REASON_CHARS} characters")


def printable(text: str) -> str:
    """Replace the characters of `text` that could control a terminal or forge a line of a log."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class _Shape(NamedTuple):
    """What a frame looks like. `types`: of its fields from the first one on; those that follow may
    be of any type. `length`: of the array, with the frame's type. `numbers`: how many of its first
    fields are numbers."""

    frame_class: type[Any]
    types: list[type]
    length: int
    numbers: int


_SHAPES: Final[dict[int, _Shape]] = {
    FrameType.OPEN: _Shape(Open, [int, str, str, list, str, bool], 7, 1),
    FrameType.HEADERS: _Shape(HeadersFrame, [int, int, list], 4, 2),
    FrameType.END: _Shape(End, [int], 2, 1),
    FrameType.RESET: _Shape(Reset, [int, int, str], 4, 2),
    FrameType.CREDIT: _Shape(Credit, [int, int], 3, 2),
    FrameType.STATUS: _Shape(Status, [dict], 2, 0),
    FrameType.CALL: _Shape(Call, [int, str, dict], 4, 1),
    FrameType.REPLY: _Shape(Reply, [int, bool], 4, 1),
    FrameType.EVENT: _Shape(Event, [int, str], 4, 1),
    FrameType.GOAWAY: _Shape(GoAway, [int, str], 4, 1),
}


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _check_event_size(event: bytes) -> bytes:
    if len(event) > MAX_EVENT_BYTES:
        raise LocalProtocolError(f"an EVENT frame has {len(event)} bytes")
    return event


def _flatten(headers: Headers, texts: str = "") -> list[bytes]:
    """Check `headers`, and return their names and values in one list.

    `texts`: the other strings of the frame, joined, which count towards `MAX_HEAD_BYTES` too.
    """
    flat = list(chain.from_iterable(headers))
    if len(headers) > MAX_HEADERS or _head_bytes(flat, texts) > MAX_HEAD_BYTES:
        raise LocalProtocolError(
            f"a head has more than {MAX_HEADERS} fields or {MAX_HEAD_BYTES} bytes",
            Fault.HEAD_TOO_LARGE,
        )
    if flat:
        check_fields(flat[::2], flat[1::2], LocalProtocolError)
    return flat


def _head_bytes(flat: list[bytes], texts: str) -> int:
    return sum(map(len, flat)) + len(texts.encode())


def _pairs(flat: list[Any], texts: str = "") -> Headers:
    """Check a frame's list of names and values, and return them in pairs. `texts`: as above."""
    if len(flat) % 2 or len(flat) > 2 * MAX_HEADERS:
        raise RemoteProtocolError(f"headers are not at most {MAX_HEADERS} pairs")
    if not _BYTES.issuperset(map(type, flat)):
        raise RemoteProtocolError("a header is not bytes")
    if _head_bytes(flat, texts) > MAX_HEAD_BYTES:
        raise RemoteProtocolError(f"a head is larger than {MAX_HEAD_BYTES} bytes")
    names, values = flat[::2], flat[1::2]
    if names:
        check_fields(names, values, RemoteProtocolError)
    return list(zip(names, values, strict=True))


_BYTES: Final = frozenset({bytes})

_BUFFER_BYTES: Final = 8 * 1024
"""First buffer size of an unpacker; it grows with the size of a read. msgpack's default is 1 MiB,
which it fills from end to end before it starts again: with small frames a session would come to
hold the whole 1 MiB, which fits into no processor cache."""

_MAX_SPARE: Final = 4
"""Unpackers kept for reuse. One is enough unless many sessions have received part of a frame."""

_spare: Final[list[msgpack.Unpacker]] = []


def _new_unpacker() -> msgpack.Unpacker:
    return msgpack.Unpacker(
        raw=False,
        read_size=_BUFFER_BYTES,
        max_buffer_size=0x7FFFFFFF,  # no bound here: `next_frame` bounds the size of a frame
        max_str_len=MAX_FRAME_BYTES,
        max_bin_len=max(MAX_DATA_BYTES, MAX_HEAD_BYTES),
        max_array_len=4096,
        max_map_len=4096,
        max_ext_len=0,
    )


class FrameDecoder:
    """Splits the bytes of a connection into msgpack arrays of bounded size.

    `max_frame_bytes` bounds a whole frame. A bound on msgpack's buffer would not be enough: msgpack
    parses nested containers as they arrive, so that an endless array could grow without limit.

    A decoder holds an unpacker only while it has part of a frame: an unpacker takes 48 KiB (msgpack
    reserves room for a thousand levels of nesting), which was half of the memory of an idle node at
    its relay.
    """

    __slots__ = ("_before", "_fed", "_max_frame_bytes", "_unpacker", "holds_bytes", "position")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._unpacker: msgpack.Unpacker | None = None
        self._before = 0  # the unpacker's own count of bytes, minus `position`, when it was taken
        self._max_frame_bytes = max_frame_bytes
        self._fed = 0
        self.position = 0
        """Size of all frames read so far in bytes: where the next frame begins."""
        self.holds_bytes = False
        """Whether there are bytes that `next_frame` has not returned in a frame."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the connection."""
        if self._unpacker is None:
            self._unpacker = _spare.pop() if _spare else _new_unpacker()
            self._before = self._unpacker.tell() - self.position
            self.holds_bytes = True
        self._unpacker.feed(data)
        self._fed += len(data)

    def next_frame(self) -> list[Any] | None:
        """Return the next whole frame, or None if more bytes are needed.

        Raises `RemoteProtocolError`.
        """
        unpacker = self._unpacker
        if unpacker is None:
            return None
        try:
            item = next(unpacker, _MORE)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise RemoteProtocolError(f"the bytes are not a frame: {error}") from None
        begun_at = self.position
        end = self._fed if item is _MORE else unpacker.tell() - self._before
        if end - begun_at > self._max_frame_bytes:
            raise RemoteProtocolError(f"a frame is larger than {self._max_frame_bytes} bytes")
        if item is _MORE:
            return None
        if type(item) is not list or not item or type(item[0]) is not int:
            raise RemoteProtocolError("a frame is not an array that begins with its type")
        self.position = end
        if end == self._fed:  # all bytes are read: return the unpacker
            self._unpacker = None
            self.holds_bytes = False
            if len(_spare) < _MAX_SPARE:
                _spare.append(unpacker)
        return item


_MORE: Final = object()
