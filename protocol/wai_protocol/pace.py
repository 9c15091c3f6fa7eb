"""How many frames of a kind a peer may send: a leaky bucket for each kind but DATA (SPEC 9).

Each end acts upon whatever the other sends, so a peer that floods it with small frames would have
its whole processor. How much is done in one turn of the loop is bounded by `frame_cost`, so that
others wait for milliseconds at most; the buckets end a session whose peer does nothing else. They
are far above what any honest peer needs: what an honest one sends in its worst second (a replay
after a minute without a connection, thousands of streams that end at once) fits into a burst.

DATA needs no bucket: credit bounds it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .errors import RemoteProtocolError
from .frames import FIRST_SESSION_TYPE, FrameType
from .limits import FRAME_COST_BYTES, PART_COST

_CREDIT: Final = int(FrameType.CREDIT)


class Pace(NamedTuple):
    """How many frames may come at once, and how many each second after that."""

    burst: int
    per_s: int


_ALIVE: Final = Pace(burst=16_384, per_s=200)
"""ACK without news, PING, PONG: each end sends one in 0.25 s at most. They cost next to nothing."""
_STREAMS: Final = Pace(burst=65_536, per_s=20_000)
"""What comes once or twice for each request: four times the streams that may be open, and then five
times what one process of ours can serve in a second."""
_ASKED: Final = Pace(burst=1024, per_s=200)
"""CALL and REPLY: at most 64 are open, and a person is behind most of them."""

PACES: Final[dict[int, Pace]] = {
    FrameType.ACK: Pace(burst=65_536, per_s=20_000),  # one for 64 KiB: 1.3 GB/s
    FrameType.PING: _ALIVE,
    FrameType.PONG: _ALIVE,
    FrameType.OPEN: _STREAMS,
    FrameType.HEADERS: _STREAMS,
    FrameType.END: _STREAMS,
    FrameType.RESET: _STREAMS,
    FrameType.CREDIT: Pace(burst=262_144, per_s=100_000),  # for each half of a window
    FrameType.STATUS: Pace(burst=256, per_s=50),  # a node of ours sends 10 a second at most
    FrameType.CALL: _ASKED,
    FrameType.REPLY: _ASKED,
    # 256 deployments that each tell four times a second. What a request that was given up has taken
    # is an EVENT too: `allow` makes room for these.
    FrameType.EVENT: Pace(burst=4096, per_s=1024),
    FrameType.GOAWAY: Pace(burst=64, per_s=1),
}


MAX_ALLOWED: Final = 16
"""Bursts that `allow` lets come at once: as many EVENTs as streams may be open."""


class PaceKeeper:
    """Counts what one peer sends. Told the time."""

    __slots__ = ("_filled_at", "_room")

    def __init__(self) -> None:
        self._room: dict[int, float] = {}
        self._filled_at: dict[int, float] = {}

    def count(self, kind: int, now: float) -> None:
        """A frame of `kind` has come. Raises `RemoteProtocolError` if it is one too many."""
        room = self._room.get(kind, 0.0)
        if room < 1.0:
            room = self._fill(kind, now)
        self._room[kind] = room - 1.0

    def allow(self, kind: int, now: float) -> None:
        """One more frame of `kind` may come: this end did what it may be the answer to."""
        room = self._room.get(kind)
        if room is None:
            room = self._fill(kind, now)
        self._room[kind] = min(room + 1.0, float(PACES[kind].burst * MAX_ALLOWED))

    def _fill(self, kind: int, now: float) -> float:
        """The room that time has made since the last time that there was none."""
        pace = PACES.get(kind)
        if pace is None:
            return 1.0  # of a type that is refused elsewhere
        filled_at = self._filled_at.get(kind)
        self._filled_at[kind] = now
        if filled_at is None:
            return float(pace.burst)
        room = self._room[kind] + (now - filled_at) * pace.per_s
        if room < 1.0:
            raise RemoteProtocolError(
                f"the peer floods this end with {FrameType(kind).name} frames: {pace.burst} at "
                f"once, and more than {pace.per_s} a second after that"
            )
        return min(room, float(pace.burst))


def frame_cost(kind: int, size: int) -> int:
    """What a frame that is no DATA, of `size` bytes, counts for in the work of one turn.

    CREDIT and the link's frames take a microsecond or two. The others begin or end a request, or
    make many objects of what they carry.
    """
    if kind < FIRST_SESSION_TYPE or kind == _CREDIT:
        return 1
    return PART_COST + size // FRAME_COST_BYTES
