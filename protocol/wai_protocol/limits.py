"""The numbers of `wai/1`: what each end may send, hold and wait for (SPEC section 9).

Numbers that the peer must know travel in HELLO and WELCOME as `Limits`; the rest are here with
their reason. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .errors import RemoteProtocolError

VERSION: Final = 1
ALPN: Final = "wai/1"

MAX_DATA_BYTES: Final = 16 * 1024
"""Payload of one DATA frame: one TLS record, so that a token waits behind 16 KiB at most."""

MAX_FRAME_BYTES: Final = 256 * 1024
"""Any other frame: a STATUS of 512 models is 150 KiB. Decoded it can cost 34 MiB."""

MAX_HANDSHAKE_BYTES: Final = 8 * 1024
"""A whole handshake from a peer that nobody knows yet: real ones take less than 1 KiB."""

MAX_HEADERS: Final = 128
"""Header fields in OPEN or HEADERS: what the common HTTP servers accept."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""Path and header fields of one OPEN or HEADERS together."""

ACK_EVERY_BYTES: Final = 64 * 1024
"""Received bytes after which an ACK is due: 9 bytes per 64 KiB, and it bounds what a peer keeps."""

SESSION_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""DATA that may be sent but not acknowledged: 40 MB/s over 200 ms, more than one TCP does there."""

SEND_HIGH_WATER_BYTES: Final = 64 * 1024
"""Data waiting in one stream at which `send_data` says stop: four frames, refilled in one turn."""

SEND_LOW_WATER_BYTES: Final = 16 * 1024
"""Data waiting in one stream at which it is `Writable` again: one frame, so that it never idles."""

WRITE_BUDGET_BYTES: Final = 64 * 1024
"""What one `bytes_to_send` hands out: four DATA frames; the next ones choose their order anew."""

MAX_CONTROL_BYTES: Final = 1024 * 1024
"""Control frames waiting while there is no connection; then no new stream is opened."""

MAX_UNTAKEN_BYTES: Final = 2 * SESSION_WINDOW_BYTES
"""Control frames waiting or kept beyond the session window, at which a peer that asks for yet more
is cut off: 16,384 answers' heads of 1 KiB, after a minute without a connection."""

MAX_REASON_CHARS: Final = 512
"""A reason in RESET, GOAWAY or REFUSE: two sentences for a person."""

TURN_COST: Final = 256
"""What one session acts upon before all other connections have their turn: as many DATA frames,
2 ms of work at a relay. See `pace.frame_cost`."""

PART_COST: Final = 8
"""What a frame counts for there that begins or ends a request, or tells of the node: it costs about
as much as eight pieces of an answer."""

FRAME_COST_BYTES: Final = 32
"""Bytes of such a frame that count for one more: a STATUS of 512 models with the shortest names has
3 KiB and takes 2 ms to read."""

MAX_WORD_CHARS: Final = 128
"""A CALL's method or an EVENT's name: ours have less than 20 characters."""

MAX_MESSAGE_CHARS: Final = 4096
"""The message of a refused REPLY: it may quote the last lines of a server's log."""

MAX_EVENT_BYTES: Final = 64 * 1024
"""A whole EVENT: a deployment's with twelve long lines of its server's log is 10 KiB."""

MAX_DETAIL_BYTES: Final = 64 * 1024
"""What `detail` of a STATUS may take in memory: a real one takes 2 KiB. A larger one is dropped:
it is for people, and no request depends on it."""

MAX_STREAM_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Where a stream's window stops growing: one stream may fill the session window."""

CREDIT_EVERY_BYTES: Final = 256 * 1024
"""Used bytes of a stream after which credit is given back, however large its window. At half of
8 MiB its sender stood idle for a third of a 200 ms round trip; a CREDIT has about 10 bytes."""

SESSION_GROWTH_BYTES: Final = 32 * 1024 * 1024
"""By how much all windows of one session together may outgrow their first size."""

PROCESS_GROWTH_BYTES: Final = 256 * 1024 * 1024
"""The same for all sessions of a process: a quarter of a small VPS's memory."""

MAX_CALLS: Final = 64
"""CALLs without a REPLY: an owner's clicks, not a data path."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one end tells the other in HELLO or WELCOME.

    `stream_window_bytes`: first window of each stream towards this end; 64 KiB is 13 s of a fast
    model's tokens, and what a caller that stopped reading costs at most. `max_streams`: streams
    open at once. `ping_s`, `dead_s`: silence after which this end sends PING, and gives a
    connection up; 25 s lets a phone hotspot change cells. `session_ttl_s`: how long a session waits
    for its next connection.
    """

    stream_window_bytes: int = 64 * 1024
    max_streams: int = 16 * 1024
    ping_s: float = 10.0
    dead_s: float = 25.0
    session_ttl_s: float = 60.0

    def to_wire(self) -> dict[str, int]:
        """The map for HELLO and WELCOME; times in milliseconds."""
        return {
            "stream_window": self.stream_window_bytes,
            "max_streams": self.max_streams,
            "ping_ms": round(self.ping_s * 1000),
            "dead_ms": round(self.dead_s * 1000),
            "ttl_ms": round(self.session_ttl_s * 1000),
        }

    @classmethod
    def from_wire(cls, value: object) -> Limits:
        """Check a peer's map; absent keys mean the defaults, unknown ones are ignored."""
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
