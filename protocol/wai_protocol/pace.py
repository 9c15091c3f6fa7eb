"""Rate limits for the frames that a peer sends: a token bucket for each type (SPEC section 9).

A peer that floods this end with small frames could use all of its processor time. Two bounds
prevent that. `frame_cost` bounds the work of one turn of the event loop, so that other connections
wait for a few milliseconds at most. The buckets end the session of a peer that keeps flooding. They
are far above what a correct peer needs: what it sends in its worst second (a replay after a minute
without a connection, thousands of streams that end at once) fits into a burst.

DATA needs no bucket, because credit bounds it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .errors import RemoteProtocolError
from .frames import FIRST_SESSION_TYPE, FrameType
from .limits import BYTES_PER_COST_UNIT, HEAVY_FRAME_COST

_CREDIT: Final = int(FrameType.CREDIT)


class Pace(NamedTuple):
    """How many frames may arrive at once (`burst`), and how many per second after that."""

    burst: int
    per_s: int


_KEEPALIVE: Final = Pace(burst=16_384, per_s=200)
"""PING and PONG: each end sends at most one in 0.25 s, and they cost almost nothing."""
_STREAMS: Final = Pace(burst=65_536, per_s=20_000)
"""Frames that are sent once or twice for each request. The burst is four times the number of open
streams; the rate is five times the requests per second that one relay process can serve."""
_CALLS: Final = Pace(burst=1024, per_s=200)
"""CALL and REPLY: at most 64 are open, and most are caused by a person."""

PACES: Final[dict[int, Pace]] = {
    FrameType.ACK: Pace(burst=65_536, per_s=20_000),  # one per 64 KiB: enough for 1.3 GB/s
    FrameType.PING: _KEEPALIVE,
    FrameType.PONG: _KEEPALIVE,
    FrameType.OPEN: _STREAMS,
    FrameType.HEADERS: _STREAMS,
    FrameType.END: _STREAMS,
    FrameType.RESET: _STREAMS,
    FrameType.CREDIT: Pace(burst=262_144, per_s=100_000),  # one per half of a stream's window
    FrameType.STATUS: Pace(burst=256, per_s=50),  # `wai node` sends at most 10 a second
    FrameType.CALL: _CALLS,
    FrameType.REPLY: _CALLS,
    # News of 256 deployments, four times a second each; see also `allow`.
    FrameType.EVENT: Pace(burst=4096, per_s=1024),
    FrameType.GOAWAY: Pace(burst=64, per_s=1),
}


MAX_ALLOWED: Final = 16
"""Maximum of a bucket that `allow` fills, in bursts: as many EVENTs as streams may be open."""


class PaceKeeper:
    """Counts the frames of one peer. The time is passed in as `now`, in seconds."""

    __slots__ = ("_filled_at", "_room")

    def __init__(self) -> None:
        self._room: dict[int, float] = {}
        self._filled_at: dict[int, float] = {}

    def count(self, kind: int, now: float) -> None:
        """Count a frame of `kind`. Raises `RemoteProtocolError` if it exceeds the pace."""
        room = self._room.get(kind, 0.0)
        if room < 1.0:
            room = self._fill(kind, now)
        self._room[kind] = room - 1.0

    def allow(self, kind: int, now: float) -> None:
        """Permit one more frame of `kind`, because this end sent something that it may answer."""
        room = self._room.get(kind)
        if room is None:
            room = self._fill(kind, now)
        self._room[kind] = min(room + 1.0, float(PACES[kind].burst * MAX_ALLOWED))

    def _fill(self, kind: int, now: float) -> float:
        """Refill the bucket for the time since it was last refilled; return its content."""
        pace = PACES.get(kind)
        if pace is None:
            return 1.0  # an unknown type, which `frames.decode` refuses
        filled_at = self._filled_at.get(kind)
        self._filled_at[kind] = now
        if filled_at is None:
            return float(pace.burst)
        room = self._room[kind] + (now - filled_at) * pace.per_s
        if room < 1.0:
            raise RemoteProtocolError(
                f"the peer sends too many {FrameType(kind).name} frames: {pace.burst} at once, "
                f"and more than {pace.per_s} a second after that"
            )
        return min(room, float(pace.burst))


def frame_cost(kind: int, size: int) -> int:
    """Return the cost of processing a frame that is not DATA, in units of one DATA frame.

    `size` is the frame's size in bytes. CREDIT and the link frames take one or two microseconds.
    The others begin or end a request, or are decoded into many objects. See `limits.TURN_COST`.
    """
    if kind < FIRST_SESSION_TYPE or kind == _CREDIT:
        return 1
    return HEAVY_FRAME_COST + size // BYTES_PER_COST_UNIT
