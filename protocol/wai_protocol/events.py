"""What a session tells its owner. Named tuples: one is made per DATA frame, and they are cheap."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from .errors import Fault
from .status import NodeStatus
from .surface import Headers


class DataReceived(NamedTuple):
    """Body bytes of a stream. Give their credit back with `Session.consume` once they are used."""

    stream: int
    data: bytes


class StreamOpened(NamedTuple):
    """A request came in (node only). `end`: it has no body."""

    stream: int
    method: str
    path: str
    headers: Headers
    model: str
    end: bool


class HeadersReceived(NamedTuple):
    """A response's head came in (relay only)."""

    stream: int
    status: int
    headers: Headers


class StreamEnded(NamedTuple):
    """The peer's direction of a stream ended cleanly."""

    stream: int


class StreamReset(NamedTuple):
    """A stream is over in both directions, by the peer's or the session's doing."""

    stream: int
    fault: Fault
    reason: str


class Writable(NamedTuple):
    """A stream for which `send_data` said stop takes more."""

    stream: int


class StatusReceived(NamedTuple):
    """The node's new STATUS (relay only)."""

    status: NodeStatus


class CallReceived(NamedTuple):
    """The relay asks for something; answer with `Session.reply` (node only)."""

    call: int
    method: str
    params: dict[str, Any]


class ReplyReceived(NamedTuple):
    """The answer to a `Session.call`. Not `ok`: `value` is {"code": wire code, "message": str}."""

    call: int
    ok: bool
    value: Any


class NodeEvent(NamedTuple):
    """The node tells of something; `call` is the CALL it belongs to, or 0 (relay only)."""

    call: int
    name: str
    value: Any


class GoAwayReceived(NamedTuple):
    """The peer takes no new streams (node) or opens none (relay) from now on."""

    fault: Fault
    reason: str
    reconnect_in_s: float | None


class PeerDead(NamedTuple):
    """Silence for too long: close the connection and `detach`; the session waits for the next."""


class TurnOver(NamedTuple):
    """More frames have come than one turn takes, and the rest is kept: read no more, and call
    `receive_data(b"")` once the other connections had their turn. Always the last event."""


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
    | TurnOver
)
