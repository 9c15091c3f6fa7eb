"""The frames of `wai/1`: msgpack arrays whose first element is the type (SPEC section 1).

Types below 16 belong to a connection: they are not counted and never replayed. Types from 16 on are
the session's: each of their bytes has an offset. This module knows shapes and bounds, and nothing
of what a frame means. DATA and ACK, which travel most, are read by the session itself.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

from .errors import Fault, LocalProtocolError, RemoteProtocolError
from .fields import check_fields, check_request_line
from .limits import (
    MAX_DATA_BYTES,
    MAX_EVENT_BYTES,
    MAX_FRAME_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_REASON_CHARS,
    MAX_WORD_CHARS,
)
from .surface import Headers


class FrameType(enum.IntEnum):
    """First element of every frame."""

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


@dataclass(frozen=True, slots=True)
class Open:
    """A request's head, from the relay. `model` tells the node which upstream; `end`: no body."""

    stream: int
    method: str
    path: str
    headers: Headers
    model: str
    end: bool


@dataclass(frozen=True, slots=True)
class HeadersFrame:
    """HEADERS: a response's head, from the node, once per stream."""

    stream: int
    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class End:
    """No more DATA in this direction."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The stream is over in both directions; `code` is a fault's wire code."""

    stream: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Credit:
    """`increment` more bytes of DATA may be sent on the stream."""

    stream: int
    increment: int


@dataclass(frozen=True, slots=True)
class Status:
    """What the node can serve now: the map of `NodeStatus`."""

    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """The relay asks the node to do something."""

    call: int
    method: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a CALL. Not `ok`: `value` is a map with `code` (wire) and `message`."""

    call: int
    ok: bool
    value: Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened on the node; `call` is the CALL it belongs to, or 0."""

    call: int
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class GoAway:
    """This end is going: no new streams; those in flight end by themselves.

    `reconnect_in_ms`: when the node should dial for a new session (nil: it need not).
    """

    code: int
    reason: str
    reconnect_in_ms: int | None


SessionFrame: TypeAlias = (
    Open | HeadersFrame | End | Reset | Credit | Status | Call | Reply | Event | GoAway
)

pack: Final[Callable[[object], bytes]] = msgpack.Packer(autoreset=True).pack


_LONG_BYTES: Final = 256  # from here on a bin has a length of two bytes


def encode_data(stream: int, data: bytes | memoryview) -> bytes:
    """The bytes of a DATA frame with `data`, at most `MAX_DATA_BYTES`."""
    size = len(data)
    if size < _LONG_BYTES:
        return pack((FrameType.DATA, stream, data))
    # What msgpack would write, with one copy of the payload instead of two.
    return b"".join((b"\x93\x12", pack(stream), b"\xc5", size.to_bytes(2, "big"), data))


def encode(frame: SessionFrame) -> bytes:
    """The bytes of any session frame but DATA.

    Raises `LocalProtocolError` for what the peer would refuse: one such frame would cost the whole
    session.
    """
    t = FrameType
    match frame:
        case Open(stream, method, path, headers, model, end):
            check_request_line(method, path, LocalProtocolError)
            flat = _flat(headers, (method, path, model))
            return pack((t.OPEN, stream, method, path, flat, model, end))
        case HeadersFrame(stream, status, headers):
            return pack((t.HEADERS, stream, status, _flat(headers, ())))
        case End(stream):
            return pack((t.END, stream))
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
            return _bounded(pack((t.EVENT, call, name, value)))
        case GoAway(code, reason, reconnect_in_ms):
            return pack((t.GOAWAY, code, reason, reconnect_in_ms))


def decode(item: list[Any], size: int = 0) -> SessionFrame:
    """Check one unpacked session frame (not DATA) of `size` bytes. Raises `RemoteProtocolError`.

    Elements beyond those known here are ignored: a newer minor version may append some.
    """
    row = _SHAPES.get(item[0])
    if row is None:
        raise RemoteProtocolError(f"unknown frame type {item[0]!r}")
    frame_class, types = row
    if len(item) <= len(types):
        raise RemoteProtocolError(f"{frame_class.__name__} frame is too short")
    fields = item[1 : len(types) + 1]
    for value, kind in zip(fields, types, strict=True):
        if kind is not None and type(value) is not kind:
            raise RemoteProtocolError(f"{frame_class.__name__} frame has a field of the wrong type")
        if kind is int and not 0 <= value < 1 << 62:
            raise RemoteProtocolError(f"{frame_class.__name__} frame has a number out of range")
    if frame_class is Open or frame_class is HeadersFrame:
        fields[2 if frame_class is HeadersFrame else 3] = _pairs(fields)
        if frame_class is Open:
            check_request_line(fields[1], fields[2], RemoteProtocolError)
    elif frame_class in _WORDS:
        _check_words(frame_class, fields, size)
    frame: SessionFrame = frame_class(*fields)
    return frame


_WORDS: Final = frozenset({Reset, Call, Event, GoAway})


def _check_words(frame_class: type, fields: list[Any], size: int) -> None:
    """The bounds of what a peer says in words. A reason is shown to people and logged."""
    if frame_class is Reset:
        _check_reason(fields[2])
    elif frame_class is GoAway:
        _check_reason(fields[1])
        if fields[2] is not None and not _is_number(fields[2]):
            raise RemoteProtocolError("GoAway frame has a field of the wrong type")
    else:
        if len(fields[1]) > MAX_WORD_CHARS:
            raise RemoteProtocolError(f"{frame_class.__name__} frame has a long name")
        if frame_class is Event and size > MAX_EVENT_BYTES:
            raise RemoteProtocolError(f"an EVENT is larger than {MAX_EVENT_BYTES} bytes")


def _check_reason(text: str) -> None:
    if len(text) > MAX_REASON_CHARS:
        raise RemoteProtocolError(f"a reason is longer than {MAX_REASON_CHARS} characters")


def printable(text: str) -> str:
    """`text` without what could steer a terminal or forge a line of a log."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


# Types of the fields after the first element; None stands for "anything".
_SHAPES: Final[dict[int, tuple[Any, tuple[type | None, ...]]]] = {
    FrameType.OPEN: (Open, (int, str, str, list, str, bool)),
    FrameType.HEADERS: (HeadersFrame, (int, int, list)),
    FrameType.END: (End, (int,)),
    FrameType.RESET: (Reset, (int, int, str)),
    FrameType.CREDIT: (Credit, (int, int)),
    FrameType.STATUS: (Status, (dict,)),
    FrameType.CALL: (Call, (int, str, dict)),
    FrameType.REPLY: (Reply, (int, bool, None)),
    FrameType.EVENT: (Event, (int, str, None)),
    FrameType.GOAWAY: (GoAway, (int, str, None)),
}


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _bounded(event: bytes) -> bytes:
    if len(event) > MAX_EVENT_BYTES:
        raise LocalProtocolError(f"an EVENT frame has {len(event)} bytes")
    return event


def _flat(headers: Headers, texts: tuple[str, ...]) -> list[bytes]:
    """Names and values in one list; `texts` is what else counts as part of the head."""
    flat = [part for pair in headers for part in pair]
    if len(headers) > MAX_HEADERS or _head_bytes(flat, texts) > MAX_HEAD_BYTES:
        raise LocalProtocolError(
            f"a head has more than {MAX_HEADERS} fields or {MAX_HEAD_BYTES} bytes",
            Fault.HEAD_TOO_LARGE,
        )
    if flat:
        check_fields(flat[::2], flat[1::2], LocalProtocolError)
    return flat


def _head_bytes(flat: list[bytes], texts: Iterable[str]) -> int:
    return sum(map(len, flat)) + sum(len(text.encode()) for text in texts)


def _pairs(fields: list[Any]) -> Headers:
    """Header pairs out of the flat list of names and values, with their bounds checked."""
    flat = next(field for field in fields if type(field) is list)
    if len(flat) % 2 or len(flat) > 2 * MAX_HEADERS:
        raise RemoteProtocolError(f"headers are not at most {MAX_HEADERS} pairs")
    if any(type(part) is not bytes for part in flat):
        raise RemoteProtocolError("a header is not bytes")
    if _head_bytes(flat, (field for field in fields if type(field) is str)) > MAX_HEAD_BYTES:
        raise RemoteProtocolError(f"a head is larger than {MAX_HEAD_BYTES} bytes")
    names, values = flat[::2], flat[1::2]
    if names:
        check_fields(names, values, RemoteProtocolError)
    return list(zip(names, values, strict=True))


_BUFFER_BYTES: Final = 8 * 1024
"""What an unpacker begins with; it grows to what comes at once. msgpack's own 1 MiB is walked
through from end to end, so that a session of small frames came to hold all of it, and no cache
did."""

_MAX_SPARE: Final = 4
"""Unpackers kept for the next read. One is enough until frames come in parts on many sessions."""

_spare: Final[list[msgpack.Unpacker]] = []


def _new_unpacker() -> msgpack.Unpacker:
    return msgpack.Unpacker(
        raw=False,
        read_size=_BUFFER_BYTES,
        max_buffer_size=0x7FFFFFFF,  # `next_frame` bounds what waits
        max_str_len=MAX_FRAME_BYTES,
        max_bin_len=max(MAX_DATA_BYTES, MAX_HEAD_BYTES),
        max_array_len=4096,
        max_map_len=4096,
        max_ext_len=0,
    )


class FrameDecoder:
    """Cuts a connection's bytes into msgpack arrays, within bounds.

    `max_frame_bytes` bounds a frame as a whole: msgpack parses nested containers as they come, so a
    bound on its buffer alone would let one endless array grow without end.

    It holds an unpacker only while it has part of a frame: one takes 48 KiB (msgpack keeps room for
    a thousand levels of nesting), half of what an idle node cost its relay.
    """

    __slots__ = ("_before", "_fed", "_max_frame_bytes", "_unpacker", "position")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._unpacker: msgpack.Unpacker | None = None
        self._before = 0  # what the unpacker had read when it came here, less our position then
        self._max_frame_bytes = max_frame_bytes
        self._fed = 0
        self.position = 0
        """Bytes of all frames read so far: where the next frame begins."""

    @property
    def holds_bytes(self) -> bool:
        """Whether bytes were fed that no frame was made of yet."""
        return self._unpacker is not None

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the connection."""
        if self._unpacker is None:
            self._unpacker = _spare.pop() if _spare else _new_unpacker()
            self._before = self._unpacker.tell() - self.position
        self._unpacker.feed(data)
        self._fed += len(data)

    def next_frame(self) -> list[Any] | None:
        """The next whole frame, or None until more bytes come. Raises `RemoteProtocolError`."""
        unpacker = self._unpacker
        if unpacker is None:
            return None
        try:
            item = next(unpacker, _MORE)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise RemoteProtocolError(f"bytes that are not a frame: {error}") from None
        begun_at = self.position
        end = self._fed if item is _MORE else unpacker.tell() - self._before
        if end - begun_at > self._max_frame_bytes:
            raise RemoteProtocolError(f"a frame is larger than {self._max_frame_bytes} bytes")
        if item is _MORE:
            return None
        if type(item) is not list or not item or type(item[0]) is not int:
            raise RemoteProtocolError("a frame is not an array that begins with its type")
        self.position = end
        if end == self._fed:  # the usual end of a read
            self._unpacker = None
            if len(_spare) < _MAX_SPARE:
                _spare.append(unpacker)
        return item


_MORE: Final = object()
