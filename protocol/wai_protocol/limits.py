"""The limits of `wai/1`: what each end may send, keep and wait for (SPEC section 9).

The limits that the peer must know are sent in HELLO and WELCOME as `Limits`; all others are the
constants below. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from .errors import RemoteProtocolError

VERSION: Final = 1
ALPN: Final = "wai/1"

MAX_DATA_BYTES: Final = 16 * 1024
"""Payload of one DATA frame: one TLS record, so that a token waits behind at most 16 KiB."""

MAX_FRAME_BYTES: Final = 256 * 1024
"""Size of any other frame: a STATUS with 512 models has 150 KiB. Decoded, such a frame can take
34 MiB of memory."""

MAX_HANDSHAKE_BYTES: Final = 8 * 1024
"""All handshake frames of one direction together, from a peer that is not authenticated yet: real
ones have less than 1 KiB."""

MAX_HEADERS: Final = 128
"""Header fields in OPEN or HEADERS: as many as common HTTP servers accept."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""Path and header fields of one OPEN or HEADERS together."""

ACK_EVERY_BYTES: Final = 64 * 1024
"""Received bytes after which an ACK is due. It costs 9 bytes per 64 KiB, and bounds how much the
peer must keep."""

SESSION_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""DATA that may be unacknowledged: enough for 40 MB/s at a round trip of 200 ms, which is more than
one TCP connection carries there."""

SEND_HIGH_WATER_BYTES: Final = 64 * 1024
"""Data waiting in one stream from which on `send_data` returns False: four frames, which one turn
of the event loop can refill."""

SEND_LOW_WATER_BYTES: Final = 16 * 1024
"""Data waiting in one stream at which it is `Writable` again: one frame, so that the stream always
has something to send."""

WRITE_BUDGET_BYTES: Final = 64 * 1024
"""Bytes that one `bytes_to_send` returns: four DATA frames. The order is chosen again for the next
ones."""

MAX_CONTROL_BYTES: Final = 1024 * 1024
"""Control frames that may wait (for example while there is no connection) before no new stream is
opened."""

MAX_UNDELIVERED_BYTES: Final = 2 * SESSION_WINDOW_BYTES
"""Control frames that wait or are unacknowledged beyond the session window. Above it, a peer that
sends another OPEN or CALL violates the protocol. Enough for the heads of 16,384 answers, 1 KiB
each, after a minute without a connection."""

MAX_REASON_CHARS: Final = 512
"""Length of a reason in RESET, GOAWAY or REFUSE: two sentences for a person."""

TURN_COST: Final = 256
"""Work that one session may do before the other connections are served, in units of one DATA frame
(see `pace.frame_cost`): about 2 ms at a relay."""

HEAVY_FRAME_COST: Final = 8
"""Cost of a frame that is neither DATA, CREDIT nor a link frame, in the same unit: processing it
takes about as long as eight DATA frames."""

BYTES_PER_COST_UNIT: Final = 32
"""For every so many bytes of such a frame its cost is one more: a STATUS of 512 models with the
shortest names has 3 KiB and takes 2 ms to read."""

MAX_METHOD_CHARS: Final = 128
"""Length of a CALL's method or an EVENT's name: the existing ones have less than 20 characters."""

MAX_MESSAGE_CHARS: Final = 4096
"""Length of the message in a REPLY that is not `ok`: it may quote the last lines of a server's
log."""

MAX_EVENT_BYTES: Final = 64 * 1024
"""Size of an EVENT: one about a deployment, with twelve long lines of its server's log, has
10 KiB."""

MAX_DETAIL_BYTES: Final = 64 * 1024
"""Memory that `detail` of a STATUS may take: a real one takes 2 KiB. A larger one is dropped: it is
for people, and no request depends on it."""

MAX_STREAM_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Maximum of a stream's window: one stream may fill the session window."""

CREDIT_EVERY_BYTES: Final = 256 * 1024
"""Used bytes of a stream after which credit is given back, however large its window. When credit
was given only after half of an 8 MiB window, the sender was idle for a third of a 200 ms round
trip. A CREDIT has about 10 bytes."""

SESSION_GROWTH_BYTES: Final = 32 * 1024 * 1024
"""By how many bytes all windows of one session together may grow beyond their initial size."""

PROCESS_GROWTH_BYTES: Final = 256 * 1024 * 1024
"""The same for all sessions of a process: a quarter of the memory of a small VPS."""

MAX_CALLS: Final = 64
"""CALLs that may wait for a REPLY: they come from an admin's clicks, not from requests."""


class Limits(msgspec.Struct, frozen=True):
    """The limits that one end tells the other in HELLO or WELCOME.

    `stream_window_bytes`: initial window of each stream towards this end. 64 KiB hold 13 s of a
    fast model's tokens; a caller that stopped reading costs no more memory than that.
    `max_streams`: streams that may be open at once. `ping_s`: silence after which this end sends
    PING. `dead_s`: silence after which it closes the connection; 25 s are enough for a phone
    hotspot to change cells. `session_ttl_s`: how long a session waits for its next connection.
    """

    stream_window_bytes: int = 64 * 1024
    max_streams: int = 16 * 1024
    ping_s: float = 10.0
    dead_s: float = 25.0
    session_ttl_s: float = 60.0

    def to_wire(self) -> dict[str, int]:
        """Return the map for HELLO and WELCOME; times are in milliseconds."""
        return {
            "stream_window": self.stream_window_bytes,
            "max_streams": self.max_streams,
            "ping_ms": round(self.ping_s * 1000),
            "dead_ms": round(self.dead_s * 1000),
            "ttl_ms": round(self.session_ttl_s * 1000),
        }

    @classmethod
    def from_wire(cls, value: object) -> Limits:
        """Check a peer's map. Missing keys mean the defaults, unknown ones are ignored.

        Raises `RemoteProtocolError`.
        """
        if not isinstance(value, dict):
            raise RemoteProtocolError("limits are not a map")
        standard = cls().to_wire()
        given = {key: _bounded(value, key, standard[key]) for key in standard}
        return cls(
            stream_window_bytes=given["stream_window"],
            max_streams=given["max_streams"],
            ping_s=given["ping_ms"] / 1000,
            dead_s=given["dead_ms"] / 1000,
            session_ttl_s=given["ttl_ms"] / 1000,
        )


def _bounded(value: dict[Any, Any], key: str, default: int) -> int:
    number = value.get(key, default)
    if type(number) is not int or not 0 < number <= 1 << 31:
        raise RemoteProtocolError(f"limit {key} is not a positive number")
    return number
