"""WebSockets as both ends of the tunnel need them (RFC 6455): the handshake's answer and messages.

Each hop makes its own handshake; in between, the bytes of the frames are the body of a stream in
either direction (SPEC section 5). Nobody on the way offers an extension, so that what passes can be
read: a relay counts what an answer cost. Pure: bytes in, values out.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import re
import secrets
from typing import Final

from .surface import Headers

VERSION: Final = b"13"
KEY_FIELD: Final = b"sec-websocket-key"
ACCEPT_FIELD: Final = b"sec-websocket-accept"
VERSION_FIELD: Final = b"sec-websocket-version"
PROTOCOL_FIELD: Final = b"sec-websocket-protocol"
MAX_PROTOCOLS_BYTES: Final = 1024
"""Of the subprotocols that one end offers; those of real clients have 150, a key included."""
MAX_REASON_BYTES: Final = 123
"""Of a Close frame, whose payload has 125 bytes (section 5.5)."""

# A value that the RFC names; what it is for, section 1.3 says.
_ACCEPT_SALT: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_KEY_BYTES: Final = 16

# A frame's head (section 5.2).
_FIN: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_CONTROL: Final = 0x8
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_OPCODES: Final = frozenset({_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG})
_SHORT: Final = 125
_MAX_HEAD_BYTES: Final = 10


class CloseCode(enum.IntEnum):
    """Why a WebSocket is closed (section 7.4.1, and the registry that it founds)."""

    GOING_AWAY = 1001
    POLICY = 1008
    INTERNAL = 1011
    TRY_AGAIN_LATER = 1013


def new_key() -> bytes:
    """Return the random value of a handshake's `Sec-WebSocket-Key`."""
    return base64.b64encode(secrets.token_bytes(_KEY_BYTES))


def is_key(value: bytes) -> bool:
    """Return whether `value` may stand in `Sec-WebSocket-Key`: 16 bytes in base64."""
    try:
        return len(base64.b64decode(value, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def accept_token(key: bytes) -> bytes:
    """Return the `Sec-WebSocket-Accept` that proves that a handshake with `key` was read."""
    return base64.b64encode(hashlib.sha1(key + _ACCEPT_SALT, usedforsecurity=False).digest())


def protocols_in(headers: Headers) -> list[bytes]:
    """Return the subprotocols that `headers` name, in order; [] where they are not well-formed."""
    listed = b",".join(value for name, value in headers if name == PROTOCOL_FIELD)
    if not listed or len(listed) > MAX_PROTOCOLS_BYTES:
        return []
    names = [name.strip(b" \t") for name in listed.split(b",")]
    return names if all(_TOKEN.fullmatch(name) for name in names) else []


def protocol_fields(names: list[bytes]) -> Headers:
    """Return the header that offers, or chooses, the subprotocols `names`; [] for none."""
    return [(PROTOCOL_FIELD, b", ".join(names))] if names else []


def close_frame(code: CloseCode, reason: str) -> bytes:
    """Encode a server's Close frame. A reason that is too long is cut."""
    said = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return bytes((_FIN | _CLOSE, 2 + len(said))) + code.to_bytes(2, "big") + said


class MessageReader:
    """Reads a server's text messages from the bytes that pass. It holds one message at most, and
    none that is longer than `limit_bytes`: that one is left out.

    It judges nobody: where the bytes are no frames of a server, it reads no further (`readable`).
    """

    __slots__ = (
        "_finished",
        "_head",
        "_left",
        "_limit_bytes",
        "_message",
        "_of_message",
        "closed",
        "readable",
    )

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._head = b""  # the beginning of a frame whose head is not whole
        self._left = 0  # bytes missing from the payload of the current frame
        self._finished = True  # whether the current frame ends its message
        self._of_message = False  # whether the current frame is part of a message, no control
        self._message: bytearray | None = None  # the text message that is not whole yet
        self.closed = False
        """Whether a Close frame came."""
        self.readable = True

    @property
    def between_frames(self) -> bool:
        """Whether another frame may be sent after what has come."""
        return self.readable and not self._left and not self._head

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came; return the text messages that it completes."""
        if not self.readable:
            return []
        messages: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if not self._left:
                at = self._read_head(data, at)
                if not self.readable:
                    return messages
                if self._head or self._left:
                    continue
            else:
                end = min(at + self._left, size)
                if self._of_message:
                    self._collect(data[at:end])
                self._left -= end - at
                at = end
                if self._left:
                    break
            if self._of_message and self._finished and self._message is not None:
                messages.append(bytes(self._message))
                self._message = None
        return messages

    def _collect(self, payload: bytes) -> None:
        message = self._message
        if message is not None:
            message += payload
            if len(message) > self._limit_bytes:
                self._message = None

    def _read_head(self, data: bytes, at: int) -> int:
        """Read a frame's head from `data` at `at`, as far as it is there; return where it ends."""
        started = len(self._head)
        head = self._head + data[at : at + _MAX_HEAD_BYTES - started]
        size = _head_size(head)
        if size is None or len(head) < size:
            self._head = head
            return at + len(head) - started
        self._head = b""
        opcode = head[0] & 0x0F
        if head[0] & _RESERVED or head[1] & _MASKED or opcode not in _OPCODES:
            self.readable = False
            return at
        length = head[1]
        self._left = length if length <= _SHORT else int.from_bytes(head[2:size], "big")
        self._of_message = not opcode & _CONTROL  # those may come in the middle of a message
        self._finished = bool(head[0] & _FIN)
        if opcode == _CLOSE:
            self.closed = True
        elif opcode == _TEXT:
            self._message = bytearray()
        elif opcode == _BINARY:
            self._message = None
        return at + size - started


def _head_size(head: bytes) -> int | None:
    """How long the frame's head is that begins with `head`; None: that is not known yet."""
    if len(head) < 2:
        return None
    match head[1] & 0x7F:
        case 126:
            return 4
        case 127:
            return 10
        case _:
            return 2
