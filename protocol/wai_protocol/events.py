"""The events that a session returns to its owner.

They are msgspec structs, which are cheap to make: every DATA frame makes one.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from .errors import Fault
from .status import NodeStatus
from .surface import Headers


class DataReceived(msgspec.Struct, frozen=True, gc=False):
    """Body bytes of a stream arrived. Call `Session.consume` once they are used."""

    stream: int
    data: bytes


class StreamOpened(msgspec.Struct, frozen=True, gc=False):
    """A request arrived (node only). `end`: it has no body."""

    stream: int
    method: str
    path: str
    headers: Headers
    model: str
    end: bool


class HeadersReceived(msgspec.Struct, frozen=True, gc=False):
    """The head of a response arrived (relay only)."""

    stream: int
    status: int
    headers: Headers


class StreamEnded(msgspec.Struct, frozen=True, gc=False):
    """The peer's direction of a stream ended cleanly."""

    stream: int


class StreamReset(msgspec.Struct, frozen=True, gc=False):
    """A stream ended in both directions: the peer reset it, or the session is over."""

    stream: int
    fault: Fault
    reason: str


class Writable(msgspec.Struct, frozen=True, gc=False):
    """A stream for which `Session.send_data` returned False accepts data again."""

    stream: int


class StatusReceived(msgspec.Struct, frozen=True, gc=False):
    """The node sent a new STATUS (relay only)."""

    status: NodeStatus


class CallReceived(msgspec.Struct, frozen=True, gc=False):
    """The relay asks for something; answer with `Session.reply` (node only)."""

    call: int
    method: str
    params: dict[str, Any]


class ReplyReceived(msgspec.Struct, frozen=True, gc=False):
    """The answer to a `Session.call` arrived.

    If not `ok`, `value` is `{"code": wire code, "message": str}`.
    """

    call: int
    ok: bool
    value: Any


class NodeEvent(msgspec.Struct, frozen=True, gc=False):
    """The node sent an EVENT; `call` is the CALL that it belongs to, or 0 (relay only)."""

    call: int
    name: str
    value: Any


class GoAwayReceived(msgspec.Struct, frozen=True, gc=False):
    """The peer, from now on, accepts no new streams (a node) or opens none (a relay)."""

    fault: Fault
    reason: str
    reconnect_in_s: float | None


class PeerDead(msgspec.Struct, frozen=True, gc=False):
    """The peer was silent for too long.

    Close the connection and call `Session.detach`; the session waits for the next connection.
    """


class TurnEnded(msgspec.Struct, frozen=True, gc=False):
    """More frames arrived than one turn processes; the rest is kept. Always the last event.

    Stop reading from the connection, and call `receive_data(b"")` in a later turn of the event
    loop, after the other connections were served.
    """


Event: TypeAlias = (
    DataReceived
    | StreamOpened
    | HeadersReceived
    | StreamEnded
    | StreamReset
    | Writable
    | StatusReceived
    | CallReceived
    | ReplyReceived
    | NodeEvent
    | GoAwayReceived
    | PeerDead
    | TurnEnded
)
