"""HTTP/2 connections on a fake transport, with the h2 library as the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import anyio
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, SettingsFrame

from wai_relay.http.budgets import ALLOWANCES, Budgets, Flood
from wai_relay.http.edge import BODY_STALL_S, WRITE_HIGH_WATER_BYTES, WRITE_STALL_S, Edge, Handler
from wai_relay.http.exchange import Exchange
from wai_relay.http.h2 import LINGER_BYTES, MAX_DATA_BYTES, MAX_UNTAKEN_BYTES, H2Connection
from wai_relay.http.turns import TURN_S, Turns

from .fakes import FakeTransport, SteppingClock, decoded, echo, turns

pytestmark = pytest.mark.anyio

GET = [(":method", "GET"), (":scheme", "https"), (":path", "/g"), (":authority", "a")]
POST = [(":method", "POST"), *GET[1:]]
CALM = 11  # ENHANCE_YOUR_CALM


class Caller:
    """An h2 client and the server's connection, joined without sockets.

    By `processor`, decoding takes no time, so that all bytes are decoded in the turn in which they
    came, on the slowest machine too.
    """

    def __init__(
        self,
        handler: Handler = echo,
        *,
        window: int = 65_535,
        processor: SteppingClock | None = None,
    ) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="ascii"))
        self.h2.local_settings[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE] = window
        self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.edge, self.transport = Edge(handler), FakeTransport()
        self.edge.turns = Turns(processor or SteppingClock())
        self.connection = H2Connection(self.edge)
        self.connection.connection_made(self.transport.as_transport())
        self.events: list[h2.events.Event] = []

    async def talk(self, raw: bytes = b"", *, step: int = 1 << 20) -> None:
        """Exchange bytes until both sides are silent; `raw` follows what h2 has to send."""
        for _ in range(12):
            data, raw = self.h2.data_to_send() + raw, b""
            for start in range(0, len(data), step):
                self.connection.data_received(data[start : start + step])
            await turns()
            answer = bytes(self.transport.written)
            self.transport.written.clear()
            if answer:
                self.events += self.h2.receive_data(answer)

    def get(self, kind: type[h2.events.Event], stream: int | None = None) -> list[h2.events.Event]:
        return [
            e
            for e in self.events
            if isinstance(e, kind) and stream in (None, getattr(e, "stream_id", None))
        ]

    def body(self, stream: int) -> bytes:
        return b"".join(
            e.data or b""
            for e in self.events
            if isinstance(e, h2.events.DataReceived) and e.stream_id == stream
        )

    async def leave(self) -> None:
        self.connection.connection_lost(None)
        await turns()
        assert self.edge.serving == 0


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
async def test_any_delivery_gives_the_same_answers(step: int) -> None:
    caller = Caller()
    caller.h2.send_headers(1, POST)
    caller.h2.send_data(1, b"hello", end_stream=True, pad_length=9)
    caller.h2.send_headers(3, GET, end_stream=True)
    await caller.talk(step=step)
    assert (caller.body(1), caller.body(3)) == (b"/g:hello", b"/g:")
    assert len(caller.get(h2.events.StreamEnded)) == 2
    await caller.leave()


async def test_a_slow_stream_waits_alone_and_tells_its_handler() -> None:
    seen: list[str] = []

    async def handler(exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            await echo(exchange)
            return
        exchange.on_resume = lambda: seen.append("resumed")
        exchange.start(200, [])
        exchange.write(b"x" * (WRITE_HIGH_WATER_BYTES + 5_000))
        seen.append(f"paused={exchange.paused}")
        exchange.end()

    caller = Caller(handler, window=1_000)
    caller.h2.send_headers(1, POST, end_stream=True)
    await caller.talk()
    assert len(caller.body(1)) == 1_000
    assert seen == ["paused=True"]
    caller.h2.send_headers(3, GET, end_stream=True)
    await caller.talk()
    assert caller.body(3) == b"/g:"
    caller.h2.increment_flow_control_window(200_000)
    caller.h2.increment_flow_control_window(200_000, 1)
    await caller.talk()
    assert len(caller.body(1)) == WRITE_HIGH_WATER_BYTES + 5_000
    assert seen == ["paused=True", "resumed"]
    assert caller.get(h2.events.StreamEnded, 1)
    await caller.leave()


async def test_the_window_opens_only_as_the_body_is_read() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        await echo(exchange)

    caller = Caller(handler)
    caller.h2.send_headers(1, POST)
    await caller.talk()
    sent = 0
    while room := min(caller.h2.local_flow_control_window(1), 16_384):
        caller.h2.send_data(1, b"x" * room)
        sent += room
    await caller.talk()
    assert caller.h2.local_flow_control_window(1) == 0
    gate.set()
    await caller.talk()
    assert caller.h2.local_flow_control_window(1) > 0
    caller.h2.end_stream(1)
    await caller.talk()
    caller.h2.acknowledge_received_data(len(caller.body(1)), 1)
    await caller.leave()


@pytest.mark.parametrize("how", ["reset", "lost", "goaway"])
async def test_a_caller_that_goes_away_cancels_its_handler(how: str) -> None:
    cancelled = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    caller = Caller(handler)
    caller.h2.send_headers(1, GET, end_stream=True)
    await caller.talk()
    if how == "reset":
        caller.h2.reset_stream(1, 8)
        await caller.talk()
        assert not caller.transport.closed
    elif how == "goaway":
        caller.h2.close_connection()
        await caller.talk()
    else:
        caller.connection.connection_lost(None)
        await turns()
    assert cancelled.is_set()
    if how != "lost":
        await caller.leave()


async def test_an_aborted_response_is_reset_visibly() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"half")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        exchange.abort()

    caller = Caller(handler)
    caller.h2.send_headers(1, GET, end_stream=True)
    await caller.talk()
    (reset,) = caller.get(h2.events.StreamReset)
    assert isinstance(reset, h2.events.StreamReset)
    assert reset.error_code == 2
    assert not caller.get(h2.events.StreamEnded)
    await caller.leave()


async def _refuse(exchange: Exchange) -> None:
    exchange.start(413, [(b"content-length", b"0")])
    exchange.end()


async def test_a_caller_who_still_sends_has_a_moment_to_do_so_and_gets_the_answer() -> None:
    """curl 7.88 loses an answer whose stream is reset while it sends the body."""
    caller = Caller(_refuse)
    caller.h2.send_headers(1, POST)
    await caller.talk()
    assert caller.get(h2.events.StreamEnded)
    caller.h2.send_data(1, b"x" * 1000, end_stream=True)
    await caller.talk()
    assert not caller.get(h2.events.StreamReset)
    assert not caller.connection._unread
    await caller.leave()


async def test_an_upload_that_nobody_reads_is_stopped_when_it_is_long() -> None:
    caller = Caller(_refuse)
    caller.h2.send_headers(1, POST)
    await caller.talk()
    for _ in range(LINGER_BYTES // MAX_DATA_BYTES):
        caller.h2.send_data(1, b"x" * MAX_DATA_BYTES)
        await caller.talk()
    assert not caller.get(h2.events.StreamReset)
    caller.h2.send_data(1, b"x")
    await caller.talk()
    assert caller.get(h2.events.StreamReset)
    await caller.leave()


async def test_an_early_answer_stops_the_upload_but_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wai_relay.http.h2.LINGER_S", 0.01)
    caller = Caller(_refuse)
    caller.h2.send_headers(1, POST)
    caller.h2.send_data(1, b"x" * 1000)
    await caller.talk()
    assert caller.get(h2.events.StreamEnded)
    with anyio.fail_after(30.0):
        while not caller.get(h2.events.StreamReset):
            await anyio.sleep(0.01)
            await caller.talk()
    (reset,) = caller.get(h2.events.StreamReset)
    assert isinstance(reset, h2.events.StreamReset)
    assert reset.error_code == 0
    await caller.leave()


async def test_malformed_fields_are_answered_on_their_stream_alone() -> None:
    caller = Caller()
    caller.h2.config.validate_outbound_headers = False
    caller.h2.config.normalize_outbound_headers = False
    caller.h2.send_headers(1, [*GET, ("host", "b")], end_stream=True)
    caller.h2.send_headers(3, GET, end_stream=True)
    await caller.talk()
    assert b"name different hosts" in caller.body(1)
    assert caller.body(3) == b"/g:"
    assert caller.edge.counters.requests == 1
    await caller.leave()


def _calm(caller: Caller) -> bool:
    ends = caller.get(h2.events.ConnectionTerminated)
    return any(getattr(e, "error_code", None) == CALM for e in ends)


@pytest.mark.parametrize(
    "frame",
    [
        PingFrame(0, opaque_data=b"12345678"),
        SettingsFrame(0, settings={}),
        DataFrame(1, b""),
    ],
)
async def test_a_flood_of_idle_frames_ends_the_connection(
    frame: PingFrame | SettingsFrame | DataFrame,
) -> None:
    caller = Caller()
    caller.h2.send_headers(1, POST)
    await caller.talk()
    await caller.talk(frame.serialize() * 400)
    assert _calm(caller)
    assert caller.transport.closed
    assert caller.edge.counters.floods == 1
    await caller.leave()


async def test_rapid_reset_ends_the_connection() -> None:
    async def handler(exchange: Exchange) -> None:
        await asyncio.Event().wait()

    caller = Caller(handler)
    await caller.talk()
    for number in range(400):
        caller.h2.send_headers(2 * number + 1, GET, end_stream=True)
        caller.h2.reset_stream(2 * number + 1, 8)
    await caller.talk()  # in one piece, and so at one moment: the allowance does not refill
    assert _calm(caller)
    assert caller.edge.counters.requests <= ALLOWANCES[Flood.RESET].burst + 1
    await caller.leave()


async def test_endless_continuation_ends_the_connection() -> None:
    caller = Caller()
    await caller.talk()
    raw = HeadersFrame(1, b"").serialize() + ContinuationFrame(1, b"").serialize() * 100
    await caller.talk(raw)
    assert caller.get(h2.events.ConnectionTerminated)
    assert caller.transport.closed
    await caller.leave()


async def test_a_stuck_reader_loses_its_stream_and_a_stalled_body_is_told() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.request.method == "POST":
            await echo(exchange)
            return
        exchange.start(200, [])
        exchange.write(b"x" * 5_000)
        await asyncio.Event().wait()

    now = asyncio.get_running_loop().time()
    caller = Caller(handler, window=1_000)
    caller.h2.send_headers(1, GET, end_stream=True)
    caller.h2.send_headers(3, POST)
    await caller.talk()
    assert caller.edge.serving == 2
    caller.connection.handle_timeout(now + BODY_STALL_S + 1)
    await caller.talk()
    assert b"timed_out" in caller.body(3)
    caller.connection.handle_timeout(now + WRITE_STALL_S + 1)
    await caller.talk()
    assert caller.get(h2.events.StreamReset, 1)
    await caller.leave()


class LaterLoop:
    """The running loop, with a clock that a test can put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._loop = asyncio.get_running_loop()

    def time(self) -> float:
        return self._loop.time() + self.ahead_s

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_at(when - self.ahead_s, callback)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def test_a_first_token_that_meets_a_shut_window_waits_from_then_on() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()  # the prefill
        exchange.start(200, [])
        exchange.write(b"token")
        exchange.end()

    caller, clock = Caller(handler, window=0), LaterLoop()
    caller.connection._loop = cast(asyncio.AbstractEventLoop, clock)
    caller.h2.send_headers(1, GET, end_stream=True)
    await caller.talk()
    clock.ahead_s += WRITE_STALL_S + 5
    gate.set()
    await caller.talk()
    caller.connection.handle_timeout(clock.time())
    clock.ahead_s += WRITE_STALL_S - 1
    caller.connection.handle_timeout(clock.time())
    await caller.talk()
    assert not caller.get(h2.events.StreamReset)
    caller.h2.increment_flow_control_window(3, 1)
    await caller.talk()
    assert caller.body(1) == b"tok"
    clock.ahead_s += WRITE_STALL_S - 1
    caller.connection.handle_timeout(clock.time())
    await caller.talk()
    assert not caller.get(h2.events.StreamReset)
    clock.ahead_s += 2
    caller.connection.handle_timeout(clock.time())
    await caller.talk()
    assert caller.get(h2.events.StreamReset, 1)
    await caller.leave()


async def test_a_body_that_others_leave_no_window_for_is_not_late() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.request.query:
            await gate.wait()
        await echo(exchange)

    caller, clock = Caller(handler), LaterLoop()
    caller.connection._loop = cast(asyncio.AbstractEventLoop, clock)
    await caller.talk()
    for stream in (1, 3, 5, 7):  # four bodies that wait for their handlers fill the connection's
        caller.h2.send_headers(stream, [*POST[:2], (":path", "/g?wait"), POST[3]])
        while room := min(caller.h2.local_flow_control_window(stream), 16_384):
            caller.h2.send_data(stream, b"x" * room)
    caller.h2.send_headers(9, POST)
    await caller.talk()
    assert caller.h2.local_flow_control_window(9) == 0
    clock.ahead_s += BODY_STALL_S + 5
    caller.connection.handle_timeout(clock.time())
    gate.set()
    await caller.talk()
    caller.connection.handle_timeout(clock.time())
    caller.h2.send_data(9, b"hello", end_stream=True)
    await caller.talk()
    assert caller.body(9) == b"/g:hello"
    await caller.leave()


async def test_a_body_in_the_smallest_frames_is_a_flood_and_is_decoded_in_turns() -> None:
    async def handler(exchange: Exchange) -> None:
        while await exchange.read():
            pass

    caller = Caller(handler, processor=SteppingClock(TURN_S / 8))
    caller.h2.send_headers(1, POST)
    await caller.talk()
    caller.connection.data_received(DataFrame(1, b"x").serialize() * 25_000)
    assert not caller.transport.reading  # the rest has to wait until the loop served others
    assert caller.edge.counters.floods < 1
    await decoded(caller.connection)
    assert caller.edge.counters.floods == 1
    await caller.talk()
    assert _calm(caller)
    await caller.leave()


async def test_a_caller_that_takes_no_answers_to_its_pings_is_ended() -> None:
    caller = Caller()
    await caller.talk()
    caller.transport.waiting = WRITE_HIGH_WATER_BYTES + MAX_UNTAKEN_BYTES + 1
    caller.connection.pause_writing()
    await caller.talk(PingFrame(0, opaque_data=b"12345678").serialize())
    assert caller.transport.aborted
    assert caller.edge.counters.floods == 1
    await caller.leave()


async def test_a_drain_finishes_open_streams_and_refuses_later_ones() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        await echo(exchange)

    caller = Caller(handler)
    caller.h2.send_headers(1, GET, end_stream=True)
    await caller.talk()
    caller.connection.drain()
    caller.connection.close_if_idle()
    caller.h2.send_headers(3, GET, end_stream=True)
    gate.set()
    sent = caller.h2.data_to_send()
    caller.connection.data_received(sent)
    await decoded(caller.connection)
    written = bytes(caller.transport.written)
    assert b"/g:" in written
    assert written.count(b"\x07\x00\x00\x00\x00\x00") == 2  # GOAWAY twice, on stream 0
    assert caller.edge.counters.requests == 1
    assert caller.transport.closed
    await caller.leave()


def test_budgets_refill_with_time() -> None:
    budgets = Budgets()
    allowance = ALLOWANCES[Flood.PING]
    assert all(budgets.spend(Flood.PING, 0.0) for _ in range(int(allowance.burst)))
    assert not budgets.spend(Flood.PING, 0.0)
    assert budgets.spend(Flood.PING, 10.0)
    assert budgets.spend(Flood.RESET, 0.0)
