"""Node and relay in pairs: random exchanges, any chunking, any cut, any order of timers.

The bounds are made small, so that each is met often: a window is a few frames, an ACK is due soon.
"""

from __future__ import annotations

import os
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import wai_protocol.link
import wai_protocol.session
import wai_protocol.stream
import wai_protocol.window
from tests.harness.session_pair import End, SessionPair
from wai_protocol.errors import Fault, WaiError
from wai_protocol.events import CallReceived
from wai_protocol.limits import SESSION_GROWTH_BYTES, Limits
from wai_protocol.status import NodeStatus

DATA_BYTES: Final = 200
ACK_BYTES: Final = 700
WINDOW_BYTES: Final = 3_000
HIGH_BYTES: Final = 900
LOW_BYTES: Final = 250
BUDGET_BYTES: Final = 1_000
MAX_WRITE_BYTES: Final = 1_500
STREAMS: Final = 6
HEAD: Final = [(b"content-type", b"text/event-stream")]

SIDES: Final = st.sampled_from(["node", "relay"])


class PairMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        limits = Limits(stream_window_bytes=1_000, max_streams=STREAMS)
        self.pair = SessionPair(limits, limits)
        for end in self.pair.ends:
            end.session._link.window_bytes = WINDOW_BYTES
        self.resets: set[int] = set()
        self.calls: list[int] = []
        self.pair.connect()

    def end(self, side: str) -> End:
        return self.pair.node if side == "node" else self.pair.relay

    def pick(self, streams: set[int], number: int) -> int | None:
        ordered = sorted(streams)
        return ordered[number % len(ordered)] if ordered else None

    def writable(self, end: End) -> set[int]:
        """The streams on which `end` may send: open, with a head, and not told to stop."""
        known = set(end.opened) if end is self.pair.node else set(end.sent)
        return {
            stream
            for stream in known - end.ended - end.stopped - self.resets
            if end is self.pair.relay or stream in end.heads
        }

    # -- the exchanges

    @rule(body=st.booleans())
    def open(self, body: bool) -> None:
        relay = self.pair.relay
        session = relay.session
        draining = session.going_away or session.peer_going_away
        if session.streams >= STREAMS or draining:
            with pytest.raises(WaiError) as refusal:
                session.open_stream("POST", "/v1/x", HEAD, "m", end=not body)
            assert refusal.value.fault is (Fault.DRAINING if draining else Fault.OVERLOADED)
            return
        stream = session.open_stream("POST", "/v1/x", HEAD, "m", end=not body)
        relay.sent[stream] += 0
        if not body:
            relay.ended.add(stream)

    @rule(number=st.integers(0, 50))
    def head(self, number: int) -> None:
        node = self.pair.node
        stream = self.pick(set(node.opened) - node.heads - node.ended, number)
        if stream is not None:
            node.session.send_headers(stream, 200, HEAD)
            node.heads.add(stream)

    @rule(side=SIDES, number=st.integers(0, 50), size=st.integers(1, MAX_WRITE_BYTES))
    def write(self, side: str, number: int, size: int) -> None:
        end = self.end(side)
        stream = self.pick(self.writable(end), number)
        if stream is not None:
            end.write(stream, size)

    @rule(side=SIDES, number=st.integers(0, 50))
    def finish(self, side: str, number: int) -> None:
        end = self.end(side)
        stream = self.pick(self.writable(end) | (end.stopped - end.ended - self.resets), number)
        if stream is not None:
            end.session.end_stream(stream)
            end.ended.add(stream)

    @rule(side=SIDES, number=st.integers(0, 200))
    def reset(self, side: str, number: int) -> None:
        end = self.end(side)
        stream = self.pick(set(end.opened) | set(end.sent), number)
        if stream is not None and number % 4 == 0 and stream in end.session._streams:
            end.session.reset_stream(stream, Fault.CANCELLED, "enough")
            end.over[stream] = "reset"
            self.resets.add(stream)

    @rule(side=SIDES, number=st.integers(0, 50), size=st.integers(1, 1_200))
    def use(self, side: str, number: int, size: int) -> None:
        end = self.end(side)
        stream = self.pick(set(end.got), number)
        if stream is not None:
            end.use(stream, size)

    @rule()
    def call(self) -> None:
        if len(self.pair.relay.session._calls) < 8:
            self.calls.append(self.pair.relay.session.call("deploy", {"model": "m"}))

    @rule()
    def reply(self) -> None:
        node = self.pair.node
        for event in [event for event in node.events if isinstance(event, CallReceived)]:
            node.events.remove(event)
            node.session.emit("progress", 0.5, event.call)
            node.session.reply(event.call, {"done": True})

    @rule()
    def status(self) -> None:
        self.pair.node.session.send_status(NodeStatus(version="1"))

    # -- the wire and the clock

    @rule(side=SIDES)
    def pump(self, side: str) -> None:
        self.end(side).pump()

    @rule(side=SIDES, size=st.one_of(st.integers(1, 40), st.integers(1, 5_000)))
    def deliver(self, side: str, size: int) -> None:
        self.pair.deliver(self.end(side), size)

    @rule()
    def turn(self) -> None:
        for end in self.pair.ends:
            end.pump()
            self.pair.deliver(end)

    @rule(lost=st.booleans())
    def cut(self, lost: bool) -> None:
        if lost:
            self.pair.cut()

    @precondition(lambda self: not self.pair.connected)
    @rule()
    def resume(self) -> None:
        self.pair.connect()

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0, 9.0, 11.0, 40.0]))
    def tick(self, seconds: float) -> None:
        self.pair.tick(seconds)

    @precondition(lambda self: self.pair.connected)
    @rule(side=SIDES)
    def probe(self, side: str) -> None:
        self.end(side).session.probe(self.pair.now)

    # -- what must hold after each step

    @invariant()
    def bounds_hold(self) -> None:
        for end in self.pair.ends:
            session = end.session
            link = session._link
            assert link.unacknowledged_bytes == sum(map(len, link._unacknowledged))
            assert link._oldest <= link._flushed <= link._sent
            # one frame of DATA may cross the line; control frames may stand beyond it
            control = sum(len(f) for f in link._unacknowledged if f[1] != 18)
            data = link.unacknowledged_bytes - control
            assert data <= WINDOW_BYTES + DATA_BYTES + 10 + STREAMS * 4
            assert session._control_bytes == sum(map(len, session._control))
            for stream in session._streams.values():
                assert 0 <= stream.inbound.credit <= stream.inbound.size
                assert stream.credit_out >= 0
                assert stream.pending_bytes == sum(map(len, stream.pending))
                assert stream.pending_bytes <= HIGH_BYTES + MAX_WRITE_BYTES
                assert stream.sendable is False or stream.scheduled
                assert not stream.stopped or stream.pending_bytes > LOW_BYTES

    @invariant()
    def no_credit_from_nowhere(self) -> None:
        node, relay = self.pair.node.session, self.pair.relay.session
        for number, stream in relay._streams.items():
            other = node._streams.get(number)
            if other is not None:
                assert stream.credit_out <= other.inbound.credit
                assert other.credit_out <= stream.inbound.credit

    @invariant()
    def growth_is_what_windows_grew(self) -> None:
        for end in self.pair.ends:
            grown = sum(
                s.inbound.size - s.inbound._first_size for s in end.session._streams.values()
            )
            left = end.session._growth._left
            assert left + grown == SESSION_GROWTH_BYTES

    def teardown(self) -> None:
        """In the end, all that was sent arrives, once and in order, and nothing stays behind."""
        pair = self.pair
        if not pair.connected:
            pair.connect()
        pair.settle()
        self.reply()
        for stream in sorted(set(pair.relay.sent) - pair.relay.ended - self.resets):
            pair.relay.session.end_stream(stream)
            pair.relay.ended.add(stream)
        pair.settle()
        for stream in pair.node.opened:
            if stream not in pair.node.heads:
                pair.node.session.send_headers(stream, 200, HEAD)
            if stream not in pair.node.ended:
                pair.node.session.end_stream(stream)
        pair.settle()
        assert pair.node.opened == sorted(pair.relay.sent), "a stream was lost"
        for stream in set(pair.relay.sent) - self.resets:
            assert pair.node.got[stream] == pair.relay.sent[stream], "a request was cut short"
            assert pair.relay.got[stream] == pair.node.sent[stream], "an answer was cut short"
            assert pair.node.over[stream] == pair.relay.over[stream] == "end"
        assert sorted(pair.relay.replies) == self.calls
        for end in pair.ends:
            assert end.session.streams == 0
            assert not end.session._ready
            assert not end.session._control
            assert not end.stopped - self.resets, "a Writable was lost"
            assert end.session.unacknowledged_bytes < 2 * ACK_BYTES


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wai_protocol.link, "ACK_EVERY_BYTES", ACK_BYTES)
    for module, names in (
        (wai_protocol.stream, {"MAX_DATA_BYTES": DATA_BYTES}),
        (wai_protocol.window, {"MAX_STREAM_WINDOW_BYTES": 8_000}),
        (
            wai_protocol.session,
            {
                "MAX_DATA_BYTES": DATA_BYTES,
                "SEND_HIGH_WATER_BYTES": HIGH_BYTES,
                "SEND_LOW_WATER_BYTES": LOW_BYTES,
                "WRITE_BUDGET_BYTES": BUDGET_BYTES,
            },
        ),
    ):
        for name, value in names.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small_bounds")
def test_every_byte_arrives_once_and_in_order_whatever_is_cut() -> None:
    fuzzing = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
    options: dict[str, Any] = {
        "max_examples": 5_000 if fuzzing else 150,
        "stateful_step_count": 200 if fuzzing else 80,
    }
    run_state_machine_as_test(
        PairMachine,
        settings=settings(
            deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, **options
        ),
    )
