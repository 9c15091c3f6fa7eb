"""How windows follow the way between two sessions: its length, its rate and who reads at its end.

A way is simulated, on a clock of its own: what is sent waits until what was sent before has left,
at so many bytes a second, and arrives some time later.
"""

from __future__ import annotations

from collections import deque

import pytest

from wai_protocol.errors import Fault
from wai_protocol.events import DataReceived, StreamOpened, Writable
from wai_protocol.limits import MAX_STREAM_WINDOW_BYTES, WRITE_BUDGET_BYTES
from wai_protocol.session import Role, Session
from wai_protocol.window import SHARED_WINDOW_BYTES

STEP_S = 0.001
PIECE = b"x" * 16_000


class Way:
    """One direction."""

    def __init__(self, bytes_per_s: float, delay_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.delay_s = delay_s
        self._free_at = 0.0
        self._waiting: deque[tuple[float, bytes]] = deque()

    def send(self, data: bytes, now: float) -> None:
        self._free_at = max(self._free_at, now) + len(data) / self.bytes_per_s
        at = self._free_at + self.delay_s
        if self._waiting:
            at = max(at, self._waiting[-1][0])
        self._waiting.append((at, data))

    def arrived(self, now: float) -> bytes:
        out = []
        while self._waiting and self._waiting[0][0] <= now:
            out.append(self._waiting.popleft()[1])
        return b"".join(out)


class Download:
    """A node that sends as fast as it may, on one stream, to a relay that reads at `reads_bps`."""

    def __init__(
        self, *, bytes_per_s: float, delay_s: float, reads_bps: float = 1e12, others: int = 0
    ) -> None:
        self.now = 0.0
        self.reads_bps = reads_bps
        self.relay = Session(Role.RELAY)
        self.node = Session(Role.NODE)
        self.to_node = Way(bytes_per_s, delay_s)
        self.to_relay = Way(bytes_per_s, delay_s)
        self.relay.attach(0, 0.0)
        self.node.attach(0, 0.0)
        self.stream = self.relay.open_stream("POST", "/v1/x", [], "m", end=True)
        for _ in range(others):
            self.relay.open_stream("POST", "/v1/x", [], "m", end=True)
        self.got = 0
        self.used = 0.0
        self._sending = False

    @property
    def window(self) -> int:
        return self.relay._streams[self.stream].inbound.size

    def run(self, seconds: float = 1e9, *, until: int = 1 << 60) -> float:
        """Go on for so long, or until so many bytes were read; the seconds that it took."""
        began = self.now
        while self.now < began + seconds and self.used < until:
            self.now += STEP_S
            self._step()
        return self.now - began

    def _step(self) -> None:
        for event in self._arrived(self.node, self.to_node):
            if isinstance(event, StreamOpened):
                self.node.send_headers(event.stream, 200, [])
                self._sending = self._sending or event.stream == self.stream
            elif isinstance(event, Writable):
                self._sending = True
        while self._sending:
            self._sending = self.node.send_data(self.stream, PIECE)
        for event in self._arrived(self.relay, self.to_relay):
            if isinstance(event, DataReceived):
                self.got += len(event.data)
        before = int(self.used)
        self.used = min(self.used + self.reads_bps * STEP_S, self.got)
        if int(self.used) > before:
            self.relay.consume(self.stream, int(self.used) - before, self.now)
        for end, way in ((self.node, self.to_relay), (self.relay, self.to_node)):
            end.handle_timeout(self.now)
            while data := end.bytes_to_send():
                way.send(data, self.now)
                if len(data) < WRITE_BUDGET_BYTES:
                    break
            self._sending = self._sending or any(
                isinstance(event, Writable) for event in end.take_events()
            )

    def _arrived(self, end: Session, way: Way) -> list[object]:
        data = way.arrived(self.now)
        return list(end.receive_data(data, self.now)) if data else []


def test_a_slow_reader_of_a_long_answer_keeps_a_small_window() -> None:
    answer = Download(bytes_per_s=12.5e6, delay_s=0.05, reads_bps=6_500)
    answer.run(60.0)
    assert answer.window == 64 * 1024


def test_a_reader_that_pauses_keeps_a_small_window() -> None:
    answer = Download(bytes_per_s=12.5e6, delay_s=0.05, reads_bps=0)
    for _ in range(20):
        answer.run(2.0)
        answer.relay.consume(answer.stream, answer.got - int(answer.used), answer.now)
        answer.used = answer.got
    assert answer.window <= 128 * 1024


@pytest.mark.parametrize("others", [0, 3])
def test_a_way_that_becomes_longer_is_filled_again_within_seconds(others: int) -> None:
    answer = Download(bytes_per_s=12.5e6, delay_s=0.0001, reads_bps=400_000, others=others)
    answer.run(5.0)
    answer.reads_bps = 1e12
    answer.to_node.delay_s = answer.to_relay.delay_s = 0.15
    assert answer.run(until=int(answer.used) + 2_000_000) < 4.0


def test_a_way_that_is_full_is_not_taken_for_a_longer_one() -> None:
    """A modem with a queue that never overflows: a larger window brings nothing but delay."""
    answer = Download(bytes_per_s=1e6, delay_s=0.02)
    answer.run(60.0)
    assert answer.window <= 1024 * 1024  # 4 round trips of 40 ms are 160 kB
    assert answer.window < MAX_STREAM_WINDOW_BYTES


def test_beside_others_a_full_way_ends_with_a_small_window() -> None:
    answer = Download(bytes_per_s=1e6, delay_s=0.02, others=3)
    answer.run(60.0)
    assert answer.window <= 2 * SHARED_WINDOW_BYTES


def test_an_idle_connection_learns_that_its_way_became_longer() -> None:
    answer = Download(bytes_per_s=1e9, delay_s=0.001)
    answer.run(0.1)
    answer.relay.reset_stream(answer.stream, Fault.CANCELLED)
    answer.to_node.delay_s = answer.to_relay.delay_s = 0.1
    answer.run(60.0)
    assert answer.relay.rtt_s is not None
    assert 0.2 <= answer.relay.rtt_s < 0.25
