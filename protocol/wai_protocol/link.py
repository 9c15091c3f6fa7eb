"""The link: a byte stream that outlives the connections that carry it (SPEC section 4).

It gives offsets to the bytes of session frames, keeps the frames that the peer has not
acknowledged, and replays them on the next connection from the offset that the peer has received. It
also decides when ACK and PING are due, and when a connection counts as dead. It knows nothing of
streams. Each `record` is one whole frame, so that a valid offset always lies between two frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from .errors import RemoteProtocolError
from .frames import FrameType, pack
from .limits import ACK_EVERY_BYTES, SESSION_WINDOW_BYTES, Limits

_ACK: Final = int(FrameType.ACK)
_PING: Final = int(FrameType.PING)
_PONG: Final = int(FrameType.PONG)

MEASURE_EVERY_S: Final = 0.25
"""Time between two measurements of the round trip of a connection under load. The first one, right
after the handshake, is too long, because the peer is busy starting."""

RECENT_ROUND_TRIPS: Final = 3
"""How many round trips in a row must be longer before the path counts as longer: one or two can be
long because an event loop is busy."""


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
        """Bytes of whole session frames received: the offset told in the next handshake."""
        self.rtt_s: float | None = None
        """The shortest round trip of this connection in seconds, None before its first PONG. Under
        load most round trips are longer, because bytes (our own too) wait in queues. It grows by
        `adopt_recent_rtt` only, because a longer path and a full queue look alike."""
        self.recent_rtt_s: float | None = None
        """The shortest of the last `RECENT_ROUND_TRIPS` round trips; None before that many."""
        self._recent: deque[float] = deque(maxlen=RECENT_ROUND_TRIPS)
        self.window_bytes = window_bytes
        self._ping_s = limits.ping_s
        self._dead_s = limits.dead_s
        self._unacknowledged: deque[bytes] = deque()
        self._oldest = 0  # offset of the first byte in _unacknowledged
        self._sent = 0  # offset after the last byte in _unacknowledged
        self._flushed = 0  # offset up to which bytes were handed to the current connection
        self._replay: Iterator[bytes] | None = None
        self._acknowledged = 0  # the last value of `received` that the peer was told
        self.heard_at = 0.0
        """When any bytes were last received."""
        self._ping_sent_at: float | None = None  # when the unanswered PING was sent
        self._measured_at = 0.0  # when the last PING was sent
        self._pings = 0
        self._pong: int | None = None

    # -- connections

    def attach(self, peer_received: int, now: float) -> None:
        """Continue on a new connection from `peer_received`, the offset that the peer has received.

        Raises `RemoteProtocolError`, and changes nothing, for an offset that was never sent, lies
        within a frame, or is below what was acknowledged before.
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
        """Note that the connection is lost. Frames that are not acknowledged are kept."""
        self.attached = False
        self._replay = None

    # -- sending

    def record(self, frame: bytes) -> None:
        """Keep a whole session frame that is about to be sent, and count its bytes."""
        size = len(frame)
        self._unacknowledged.append(frame)
        self._sent += size
        self._flushed += size

    @property
    def room(self) -> int:
        """How many more bytes of DATA fit into the session window.

        Negative while control frames exceed the window.
        """
        return self.window_bytes - self._sent + self._oldest

    @property
    def unacknowledged_bytes(self) -> int:
        """How many sent bytes are kept for a replay."""
        return self._sent - self._oldest

    @property
    def replaying(self) -> bool:
        """Whether frames of an earlier connection remain to be sent again."""
        return self._replay is not None

    def take_replay(self, budget: int) -> list[bytes]:
        """Return the next frames of the replay, about `budget` bytes of them.

        The whole replay must be sent before any new session frame.
        """
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
        """Return the ACK and PONG that are due; link frames have no offset."""
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
        """Whether link frames are due or a replay is in progress."""
        return self._replay is not None or self.link_frames_due

    @property
    def link_frames_due(self) -> bool:
        """Whether `take_link_frames` has frames to return."""
        return self._pong is not None or self.received - self._acknowledged >= ACK_EVERY_BYTES

    # -- receiving

    def receive_link_frame(self, item: list[object], now: float) -> None:
        """Process an ACK, PING or PONG. Raises `RemoteProtocolError` for anything else."""
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
        """Drop the frames before `offset`, which the peer has received.

        `sent`: the highest valid offset. Changes nothing if the offset is not valid.
        """
        if not self._oldest <= offset <= sent:
            raise RemoteProtocolError(
                f"the peer acknowledged {offset} bytes, outside {self._oldest} to {sent}"
            )
        count = end = 0
        for end in accumulate(map(len, self._unacknowledged), initial=self._oldest):
            if end >= offset:
                break
            count += 1
        if end != offset:
            raise RemoteProtocolError(f"offset {offset} lies within a frame")
        for _ in range(count):
            self._unacknowledged.popleft()
        self._oldest = offset

    # -- time

    def ping(self, now: float) -> bytes:
        """Return a PING to be sent now: to measure the round trip, or to check a silent peer."""
        self._pings += 1
        self._ping_sent_at = self._measured_at = now
        return pack((_PING, self._pings))

    def adopt_recent_rtt(self) -> None:
        """Set `rtt_s` to `recent_rtt_s`, because the path itself is longer now."""
        if self.recent_rtt_s is not None:
            self.rtt_s = self.recent_rtt_s

    def measure_due(self, now: float) -> bool:
        """Whether to measure the round trip again, for the sizes of the streams' windows."""
        return self._ping_sent_at is None and now - self._measured_at >= MEASURE_EVERY_S

    def next_deadline(self) -> float | None:
        """When `ping_due` or `is_dead` will be true if nothing arrives; None while detached."""
        if not self.attached:
            return None
        dead_at = self._dead_at()
        return self.heard_at + self._ping_s if dead_at is None else dead_at

    def ping_due(self, now: float) -> bool:
        """Whether the peer has been silent for `ping_s`, and no PING was sent in that time."""
        pinged = self._dead_at() is not None
        return self.attached and not pinged and now >= self.heard_at + self._ping_s

    def is_dead(self, now: float) -> bool:
        """Whether the peer has left a PING unanswered for so long that the connection is dead."""
        dead_at = self._dead_at()
        return self.attached and dead_at is not None and now >= dead_at

    @property
    def unanswered_ping_at(self) -> float | None:
        """When a PING was sent that no byte has followed; None if none was."""
        sent_at = self._ping_sent_at
        return None if sent_at is None or sent_at <= self.heard_at else sent_at

    def _dead_at(self) -> float | None:
        """When the connection counts as dead; None if no PING was sent since the last bytes came.

        A late timer delays the PING; the peer gets its whole time to answer nevertheless.
        """
        sent_at = self.unanswered_ping_at
        if sent_at is None:
            return None
        answer_s = max(self._dead_s - self._ping_s, self._dead_s / 2)
        return max(self.heard_at + self._dead_s, sent_at + answer_s)
