"""What an HTTP/2 caller may make us do for nothing: a leaky bucket per kind of frame.

Frames that are cheap to send and cost the receiver work are how HTTP/2 servers are flooded (rapid
reset, PING, SETTINGS, empty DATA). A caller that overdraws is told ENHANCE_YOUR_CALM. CONTINUATION
needs no bucket: `h2` takes 64 per block, and `MAX_HEAD_BYTES` bounds what they may unpack to.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Allowance:
    """`burst` at once, and `per_s` a second from then on."""

    burst: float
    per_s: float


class Flood(enum.Enum):
    """The kinds of frames that are counted."""

    RESET = enum.auto()
    PING = enum.auto()
    SETTINGS = enum.auto()
    EMPTY_DATA = enum.auto()
    SMALL_DATA = enum.auto()
    WINDOW_UPDATE = enum.auto()
    PRIORITY = enum.auto()
    UNKNOWN = enum.auto()


# What an honest caller needs at most.
ALLOWANCES: Final = {
    # A user interface cancels one answer at a time; a load test may drop all its 128 streams twice.
    Flood.RESET: Allowance(256, 20),
    # Keepalives ping every few seconds; curl and browsers use it to measure the path.
    Flood.PING: Allowance(64, 5),
    # Once at the start, and when a window is tuned.
    Flood.SETTINGS: Allowance(32, 1),
    # DATA without a byte ends a body, at most once a request. Padding counts as no byte.
    Flood.EMPTY_DATA: Allowance(256, 200),
    # A body that is written field by field; each frame costs 20 µs.
    Flood.SMALL_DATA: Allowance(10_000, 2_000),
    # A token is about one DATA frame from us, for which some callers return two.
    Flood.WINDOW_UPDATE: Allowance(20_000, 10_000),
    # Deprecated by RFC 9113, but curl still sends one with each request.
    Flood.PRIORITY: Allowance(2_000, 5_000),
    # Unknown types must be ignored (GREASE), not enjoyed.
    Flood.UNKNOWN: Allowance(64, 5),
}


class Budgets:
    """One connection's buckets."""

    __slots__ = ("_spent",)

    def __init__(self) -> None:
        self._spent: dict[Flood, tuple[float, float]] = {}

    def spend(self, kind: Flood, now: float) -> bool:
        """Count one frame of `kind` at `now` (seconds, monotonic); False: that is a flood."""
        allowance = ALLOWANCES[kind]
        level, since = self._spent.get(kind, (0.0, now))
        level = max(0.0, level - (now - since) * allowance.per_s) + 1.0
        self._spent[kind] = (level, now)
        return level <= allowance.burst
