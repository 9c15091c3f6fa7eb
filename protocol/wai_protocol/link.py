"""The link: a byte stream that outlives its connections (SPEC section 4).

It numbers the bytes of session frames, keeps those that the peer has not acknowledged, and sends
them again on the next connection from where the peer got to. It also decides when to acknowledge,
when to ask for a sign of life, and when a connection counts as dead. It knows no streams, and cuts
no frames: each `record` is one whole frame, so an offset always falls between two of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from .errors import RemoteProtocolError
from .frames import FrameType, pack
from .limits import ACK_EVERY_BYTES, SESSION_WINDOW_BYTES, Limits

_ACK: Final = int(FrameType.ACK)
_PING: Final = int(FrameType.PING)
_PONG: Final = int(FrameType.PONG)

MEASURE_EVERY_S: Final = 0.25
"""Between two looks at the round trip of a connection under load; the first look, right after the
handshake, finds an end that is busy starting."""

RECENT_ROUND_TRIPS: Final = 3
"""How many in a row must be longer before the way may be: one or two are a busy loop's."""


class Link:
    """One end of a resumable byte stream. Offsets count from 0 at the session's start."""

    __slots__ = (
        "_acknowledged",
        "_dead_s",
        "_flushed",
        "_measured_at",
        "_oldest",
        "_ping_s",
        "_ping_sent_at",
        "_pings",
        "_pong",
        "_recent",
        "_replay",
        "_sent",
        "_unacknowledged",
        "attached",
        "heard_at",
        "received",
        "recent_rtt_s",
        "rtt_s",
        "window_bytes",
    )

    def __init__(self, limits: Limits, window_bytes: int = SESSION_WINDOW_BYTES) -> None:
        self.attached = False
        self.received = 0
        """Bytes of whole session frames that came in: the offset told at the next handshake."""
        self.rtt_s: float | None = None
        """The way there and back: the shortest round trip of this connection, None before its first
        PONG. Most under load are longer by what waits in queues, our own bytes among it. It grows
        only by `lengthen`: a way that has become longer and one that is full look alike."""
        self.recent_rtt_s: float | None = None
        """The shortest of the last few round trips; None while there were fewer."""
        self._recent: deque[float] = deque(maxlen=RECENT_ROUND_TRIPS)
        self.window_bytes = window_bytes
        self._ping_s = limits.ping_s
        self._dead_s = limits.dead_s
        self._unacknowledged: deque[bytes] = deque()
        self._oldest = 0  # offset of the first byte in _unacknowledged
        self._sent = 0  # offset after the last byte in _unacknowledged
        self._flushed = 0  # offset up to which the current connection was given bytes
        self._replay: Iterator[bytes] | None = None
        self._acknowledged = 0  # the last offset that the peer was told
        self.heard_at = 0.0
        """When the last bytes came in, whichever: the connection lives."""
        self._ping_sent_at: float | None = None  # of the one that is not answered
        self._measured_at = 0.0  # when the last one was sent
        self._pings = 0
        self._pong: int | None = None

    # -- connections

    def attach(self, peer_received: int, now: float) -> None:
        """Go on, on a new connection, from `peer_received`: what the peer said it has.

        Raises `RemoteProtocolError`, and changes nothing, for an offset that was never sent, lies
        within a frame or before what is acknowledged already.
        """
        self._drop_before(peer_received, self._sent)
        self._flushed = peer_received
        self._replay = iter(tuple(self._unacknowledged)) if self._unacknowledged else None
        self._acknowledged = self.received  # HELLO and WELCOME told the peer
        self.heard_at = now
        self.rtt_s = self.recent_rtt_s = None
        self._recent.clear()
        self._ping_sent_at = None
        self._pong = None
        self.attached = True

    def detach(self) -> None:
        """The connection is gone. What the peer has not acknowledged stays."""
        self.attached = False
        self._replay = None

    # -- sending

    def record(self, frame: bytes) -> None:
        """Number a whole session frame, which is about to be sent, and keep it."""
        size = len(frame)
        self._unacknowledged.append(frame)
        self._sent += size
        self._flushed += size

    @property
    def room(self) -> int:
        """How many more bytes of DATA fit into the session window; negative for control beyond."""
        return self.window_bytes - self._sent + self._oldest

    @property
    def unacknowledged_bytes(self) -> int:
        """What is kept for a replay."""
        return self._sent - self._oldest

    @property
    def replaying(self) -> bool:
        """Whether frames of an earlier connection are still to be sent again."""
        return self._replay is not None

    def take_replay(self, budget: int) -> list[bytes]:
        """Up to about `budget` bytes of what is to be sent again; all of it must go before more."""
        out: list[bytes] = []
        if self._replay is None:
            return out
        while budget > 0:
            frame = next(self._replay, None)
            if frame is None:
                self._replay = None
                break
            out.append(frame)
            budget -= len(frame)
            self._flushed += len(frame)
        return out

    def take_link_frames(self) -> bytes:
        """ACK, PING and PONG that are due; they are not counted."""
        out = b""
        if self.received - self._acknowledged >= ACK_EVERY_BYTES or (
            self._pong is not None and self.received != self._acknowledged
        ):
            out = pack((_ACK, self.received))
            self._acknowledged = self.received
        if self._pong is not None:
            out += pack((_PONG, self._pong))
            self._pong = None
        return out

    @property
    def has_bytes_to_send(self) -> bool:
        """Whether there are link frames, or frames to be sent again."""
        return self._replay is not None or self.owes

    @property
    def owes(self) -> bool:
        """Whether `take_link_frames` has something to give."""
        return self._pong is not None or self.received - self._acknowledged >= ACK_EVERY_BYTES

    # -- receiving

    def receive_link_frame(self, item: list[object], now: float) -> None:
        """Take an ACK, PING or PONG. Raises `RemoteProtocolError` for anything else."""
        kind = item[0]
        if len(item) < 2 or type(item[1]) is not int or item[1] < 0:
            raise RemoteProtocolError(f"link frame {kind} without its number")
        number = item[1]
        if kind == _ACK:
            self._drop_before(number, self._flushed)
        elif kind == _PING:
            self._pong = number
        elif kind == _PONG:
            if self._ping_sent_at is not None and number == self._pings:
                took_s = now - self._ping_sent_at
                self.rtt_s = took_s if self.rtt_s is None else min(took_s, self.rtt_s)
                self._recent.append(took_s)
                if len(self._recent) == RECENT_ROUND_TRIPS:
                    self.recent_rtt_s = min(self._recent)
                self._ping_sent_at = None
        else:
            raise RemoteProtocolError(f"frame type {kind} does not belong here")

    def _drop_before(self, offset: int, sent: int) -> None:
        """Forget what the peer has. Nothing is changed where it says what can't be."""
        if not self._oldest <= offset <= sent:
            raise RemoteProtocolError(
                f"the peer has {offset} bytes, it says; it was sent {self._oldest} to {sent}"
            )
        count, end = 0, self._oldest
        for frame in self._unacknowledged:
            if end >= offset:
                break
            end += len(frame)
            count += 1
        if end != offset:
            raise RemoteProtocolError(f"offset {offset} lies within a frame")
        for _ in range(count):
            self._unacknowledged.popleft()
        self._oldest = offset

    # -- time

    def ping(self, now: float) -> bytes:
        """A PING to be sent now: to measure the round trip, or to hear whether the peer lives."""
        self._pings += 1
        self._ping_sent_at = self._measured_at = now
        return pack((_PING, self._pings))

    def lengthen(self) -> None:
        """The last few round trips were no queue of ours: the way itself takes so long now."""
        if self.recent_rtt_s is not None:
            self.rtt_s = self.recent_rtt_s

    def measure_due(self, now: float) -> bool:
        """Whether the round trip is worth another look, by one whose windows depend on it."""
        return self._ping_sent_at is None and now - self._measured_at >= MEASURE_EVERY_S

    def next_deadline(self) -> float | None:
        """When `ping_due` or `is_dead` will be true if nothing comes in; None while detached."""
        if not self.attached:
            return None
        dead_at = self._dead_at()
        return self.heard_at + self._ping_s if dead_at is None else dead_at

    def ping_due(self, now: float) -> bool:
        """Whether it has been silent so long that the peer must be asked."""
        asked = self._dead_at() is not None
        return self.attached and not asked and now >= self.heard_at + self._ping_s

    def is_dead(self, now: float) -> bool:
        """Whether the peer was asked, and has been silent so long that it counts as lost."""
        dead_at = self._dead_at()
        return self.attached and dead_at is not None and now >= dead_at

    def _dead_at(self) -> float | None:
        """When the silence will have lasted too long; None if the peer was not asked in it.

        A timer may be late, and so the PING: the peer gets its time to answer all the same.
        """
        if self._ping_sent_at is None or self._ping_sent_at <= self.heard_at:
            return None
        answer_s = max(self._dead_s - self._ping_s, self._dead_s / 2)
        return max(self.heard_at + self._dead_s, self._ping_sent_at + answer_s)
