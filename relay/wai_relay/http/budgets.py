"""Rate limits for HTTP/2 frames that cost the server work: a leaky bucket per kind of frame.

HTTP/2 servers are attacked with frames that are cheap to send and expensive to process (rapid
reset, PING, SETTINGS, empty DATA). A connection that exceeds a limit is closed with the error
ENHANCE_YOUR_CALM. CONTINUATION needs no bucket: the `h2` library accepts 64 per block, and
`MAX_HEAD_BYTES` bounds their decompressed size.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Allowance(msgspec.Struct, frozen=True):
    """How many frames may arrive at once (`burst`), and how many per second after that."""

    burst: float
    per_s: float


class Flood(enum.Enum):
    """A kind of frame that is counted."""

    RESET = enum.auto()
    PING = enum.auto()
    SETTINGS = enum.auto()
    EMPTY_DATA = enum.auto()
    SMALL_DATA = enum.auto()
    WINDOW_UPDATE = enum.auto()
    PRIORITY = enum.auto()
    UNKNOWN = enum.auto()


# The most that a legitimate caller needs.
ALLOWANCES: Final = {
    # A user interface cancels one answer at a time; a load test may drop all its 128 streams twice.
    Flood.RESET: Allowance(256, 20),
    # Clients send keepalives every few seconds; curl and browsers also measure the round trip.
    Flood.PING: Allowance(64, 5),
    # Once at the start, and when a window is tuned.
    Flood.SETTINGS: Allowance(32, 1),
    # DATA without payload ends a body, at most once per request. Padding is not payload.
    Flood.EMPTY_DATA: Allowance(256, 200),
    # Some clients write a body field by field; each frame costs 20 µs.
    Flood.SMALL_DATA: Allowance(10_000, 2_000),
    # The relay sends about one DATA frame per token; some clients return two of these for each.
    Flood.WINDOW_UPDATE: Allowance(20_000, 10_000),
    # Deprecated by RFC 9113, but curl still sends one with each request.
    Flood.PRIORITY: Allowance(2_000, 5_000),
    # Clients send frames of unknown types (GREASE), which must be ignored.
    Flood.UNKNOWN: Allowance(64, 5),
}


class Budgets:
    """The buckets of one connection."""

    __slots__ = ("_spent",)

    def __init__(self) -> None:
        self._spent: dict[Flood, tuple[float, float]] = {}

    def spend(self, kind: Flood, now: float) -> bool:
        """Count a frame of `kind` at `now` (monotonic seconds); False: it is one too many."""
        allowance = ALLOWANCES[kind]
        level, since = self._spent.get(kind, (0.0, now))
        level = max(0.0, level - (now - since) * allowance.per_s) + 1.0
        self._spent[kind] = (level, now)
        return level <= allowance.burst
