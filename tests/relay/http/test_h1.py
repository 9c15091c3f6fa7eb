"""HTTP/1.1 connections on a fake transport: delivery in any pieces, order, pressure, ends."""

from __future__ import annotations

import asyncio
import logging

import pytest

from wai_protocol.errors import RequestError
from wai_protocol.http1 import MAX_CHUNKED_BYTES
from wai_relay.http.edge import (
    BODY_STALL_S,
    CLOSE_S,
    HEAD_DEADLINE_S,
    IDLE_TIMEOUT_S,
    READ_AHEAD_BYTES,
    WRITE_STALL_S,
    Edge,
    Handler,
)
from wai_relay.http.exchange import Exchange
from wai_relay.http.h1 import H1Connection
from wai_relay.http.heads import MAX_HEAD_BYTES

from .fakes import FakeTransport, decoded, echo, turns

pytestmark = pytest.mark.anyio

POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: 1\r\n\r\n"
)
GET = b"GET /g HTTP/1.1\r\nHost: a\r\n\r\n"


def connect(handler: Handler = echo) -> tuple[Edge, H1Connection, FakeTransport]:
    edge, transport = Edge(handler), FakeTransport()
    connection = H1Connection(edge)
    connection.connection_made(transport.as_transport())
    return edge, connection, transport


def bodies(written: bytes | bytearray) -> list[bytes]:
    return [part.split(b"\r\n\r\n", 1)[1] for part in bytes(written).split(b"HTTP/1.1 ") if part]


@pytest.mark.parametrize("step", [1, 3, 7, 10_000])
async def test_any_delivery_gives_the_same_answers_in_order(step: int) -> None:
    _, connection, transport = connect()
    stream = POST + CHUNKED + b"\r\n" + GET + POST
    for start in range(0, len(stream), step):
        connection.data_received(stream[start : start + step])
        await turns(1 if step == 1 else 8)
    await turns(30)
    assert bodies(transport.written) == [b"/p:hello", b"/c:hello", b"/g:", b"/p:hello"]
    assert b"HTTP/1.1 200 OK\r\n" in transport.written
    assert not transport.closed
    connection.connection_lost(None)


async def test_pipelined_requests_wait_for_the_one_that_runs() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.request.path == "/p":
            await gate.wait()
        await echo(exchange)

    edge, connection, transport = connect(handler)
    connection.data_received(POST + GET)
    await turns()
    assert edge.serving == 1
    connection.data_received(GET * (READ_AHEAD_BYTES // len(GET) + 1))
    assert not transport.reading
    gate.set()
    await decoded(connection)
    assert bodies(transport.written)[:2] == [b"/p:hello", b"/g:"]
    assert transport.reading
    connection.connection_lost(None)


async def test_pipelined_requests_are_read_no_faster_than_they_are_answered() -> None:
    _, connection, transport = connect()
    burst = GET * (2 * READ_AHEAD_BYTES // len(GET))
    connection.data_received(burst)
    for _ in range(200):
        if transport.reading:
            connection.data_received(burst)
        await turns(3)
        assert len(connection._buffer) <= READ_AHEAD_BYTES + len(burst)
    assert len(bodies(transport.written)) >= 100
    connection.connection_lost(None)


async def test_a_caller_that_reads_no_answers_is_served_no_further_requests() -> None:
    edge, connection, transport = connect()
    connection.data_received(GET)
    await turns()
    connection.pause_writing()
    connection.data_received(GET * 3)
    await decoded(connection)
    assert edge.counters.requests == 2  # the one that came while the last was taken, and no other
    assert not transport.reading
    connection.resume_writing()
    await decoded(connection)
    assert edge.counters.requests == 4
    assert transport.reading
    connection.connection_lost(None)


async def test_a_malformed_head_gets_one_named_answer_and_nothing_after_it() -> None:
    edge, connection, transport = connect()
    connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + GET)
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"more than one host" in transport.written
    assert b"connection: close" in transport.written
    assert edge.counters.requests == 0
    connection.handle_timeout(asyncio.get_running_loop().time() + 60)
    assert transport.closed
    connection.connection_lost(None)


async def test_a_refused_head_is_in_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    _, connection, transport = connect()
    with caplog.at_level(logging.INFO, logger="wai.access"):
        connection.data_received(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n")
        await turns()
    (line,) = caplog.messages
    request_id = bytes(transport.written).partition(b"x-request-id: ")[2].partition(b"\r")[0]
    assert line == f"request_id={request_id.decode()} status=417 fault=expectation_failed"
    connection.connection_lost(None)


async def test_an_oversized_head_is_431_before_it_is_complete() -> None:
    _, connection, transport = connect()
    connection.data_received(b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES)
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 431 ")
    connection.connection_lost(None)


async def test_a_broken_chunk_is_the_readers_error_and_ends_the_connection() -> None:
    _, connection, transport = connect()
    connection.data_received(CHUNKED.replace(b"2\r\nhe", b"zz\r\nhe"))
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert b"chunked request body is invalid: illegal chunk header" in transport.written
    assert b"bytearray" not in transport.written
    assert b"connection: close" in transport.written
    connection.connection_lost(None)


BODY_FAULTS = {
    "a bare CR": b"5\rhello\r\n0\r\n\r\n",
    "CR CR LF": b"5\r\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a=\x00\r\nhello\r\n0\r\n\r\n",
    "LF after the last chunk": b"5\r\nhello\r\n0\r\n\n",
    "LF after a size": b"5\nhello\r\n0\r\n\r\n",
    "LF after a chunk": b"5\r\nhello\n0\r\n\r\n",
    "a folded trailer": b"5\r\nhello\r\n0\r\na: b\r\n c: d\r\n\r\n",
    "a trailer without a colon": b"5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
    "a long extension": b"5;" + b"x" * 1000 + b"\r\nhello\r\n0\r\n\r\n",
    "many extensions": (b"1;" + b"x" * 200 + b"\r\nh\r\n") * 60 + b"0\r\n\r\n",
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size in C": b"0x5\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("fault", BODY_FAULTS)
@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_a_chunked_body_of_two_readings_hides_no_request(fault: str, step: int) -> None:
    edge, connection, transport = connect()
    head = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    stream = head + BODY_FAULTS[fault] + GET
    for start in range(0, len(stream), step):
        connection.data_received(stream[start : start + step])
    await decoded(connection)
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert b"chunked request body is invalid" in transport.written
    assert b"connection: close" in transport.written
    assert edge.counters.requests == 1
    connection.connection_lost(None)


@pytest.mark.parametrize("size", [b"%x" % (MAX_CHUNKED_BYTES + 1), b"f" * 16, b"0" * 9 + b"f" * 30])
async def test_a_chunk_that_announces_too_much_is_413_before_its_first_byte(size: bytes) -> None:
    _, connection, transport = connect()
    connection.data_received(CHUNKED.partition(b"2\r\n")[0] + size + b"\r\n")
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 413 ")
    connection.connection_lost(None)


async def test_a_chunked_body_is_as_long_as_its_handler_reads_it() -> None:
    """`gateway.body_bytes` may be above the 64 MiB of its default."""
    piece, count = bytes(1 << 20), 80
    read = 0

    async def handler(exchange: Exchange) -> None:
        nonlocal read
        while data := await exchange.read():
            read += len(data)
        exchange.start(200, [])
        exchange.end()

    _, connection, transport = connect(handler)
    connection.data_received(CHUNKED.partition(b"2\r\n")[0])
    for _ in range(count):
        connection.data_received(b"%x\r\n%b\r\n" % (len(piece), piece))
        await decoded(connection)
    connection.data_received(b"0\r\n\r\n")
    await decoded(connection)
    assert read == count * len(piece)
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    connection.connection_lost(None)


async def test_a_body_in_the_smallest_chunks_comes_whole_and_in_turns() -> None:
    sizes: list[int] = []

    async def handler(exchange: Exchange) -> None:
        while data := await exchange.read():
            sizes.append(len(data))
        exchange.start(200, [])
        exchange.end()

    _, connection, transport = connect(handler)
    count = 200_000
    body = b"1\r\nx\r\n" * count + b"0\r\n\r\n" + GET
    connection.data_received(CHUNKED.partition(b"2\r\n")[0] + body)
    assert not transport.reading
    async with asyncio.timeout(30):
        while transport.written.count(b"HTTP/1.1 200") < 2:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)
    assert sum(sizes) == count
    assert len(sizes) > 1
    assert transport.reading
    connection.connection_lost(None)


@pytest.mark.parametrize("step", [1, 2, 3, 1 << 20])
async def test_two_empty_lines_before_a_request_are_ignored_and_a_third_is_refused(
    step: int,
) -> None:
    _, connection, transport = connect()
    stream = b"\r\n\r\n" + GET + b"\r\n" + POST
    for start in range(0, len(stream), step):
        connection.data_received(stream[start : start + step])
    await turns(30)
    assert bodies(transport.written) == [b"/g:", b"/p:hello"]
    connection.connection_lost(None)

    _, connection, transport = connect()
    for start in range(0, 6, step):
        connection.data_received(b"\r\n\r\n\r\n"[start : start + step])
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in transport.written
    connection.connection_lost(None)


async def test_empty_lines_in_bulk_are_dropped_unread() -> None:
    edge, connection, transport = connect()
    for _ in range(64):
        connection.data_received(b"\r\n" * 131_072)
    await turns()
    assert transport.written.count(b"HTTP/1.1 400 ") == 1
    assert edge.counters.heads_refused == 1
    assert not connection._buffer
    connection.connection_lost(None)


@pytest.mark.parametrize("piece", [b"\r", b"\r\n"])
async def test_an_empty_line_moves_no_deadline(piece: bytes) -> None:
    _, connection, _ = connect()
    before = connection.next_deadline()
    connection._waiting_since -= 5
    connection.data_received(piece)
    after = connection.next_deadline()
    assert before is not None
    assert after == before - 5
    connection.connection_lost(None)


@pytest.mark.parametrize("target", [b"/wai?x", b"/wai?", b"/wai/", b"/WAI"])
async def test_only_the_tunnels_own_path_upgrades(target: bytes) -> None:
    edge, transport = Edge(echo, tunnel_factory=asyncio.Protocol), FakeTransport()
    connection = H1Connection(edge)
    connection.connection_made(transport.as_transport())
    connection.data_received(
        b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: wai/1\r\n\r\n" % target
    )
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    connection.connection_lost(None)


async def test_a_reader_that_takes_less_than_it_is_sent_is_slow_not_stuck() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        await asyncio.Event().wait()

    now = asyncio.get_running_loop().time()
    _, connection, transport = connect(handler)
    connection.data_received(GET)
    await turns()
    transport.waiting = 70_000
    connection._written_bytes = 70_000
    connection.pause_writing()
    connection._written_bytes += 900_000  # what the window of the node's stream still brought
    transport.waiting = 900_000
    connection.handle_timeout(now + WRITE_STALL_S + 1)
    assert not transport.aborted
    connection.handle_timeout(now + 2 * WRITE_STALL_S + 2)
    assert transport.aborted
    connection.connection_lost(None)
    await turns()


async def test_a_last_answer_is_taken_slowly_and_whole_before_the_close() -> None:
    now = asyncio.get_running_loop().time()
    _, connection, transport = connect()
    transport.waiting = 100_000
    connection.data_received(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    await turns()
    assert bodies(transport.written) == [b"/g:"]
    assert not transport.closed
    for step in (1, 2, 3):
        transport.waiting -= 10_000
        connection.handle_timeout(now + step * (CLOSE_S + 1))
        assert not transport.aborted
    transport.waiting = 0
    connection.resume_writing()
    assert transport.closed
    assert not transport.aborted
    connection.connection_lost(None)


async def test_a_last_answer_that_nobody_takes_is_dropped() -> None:
    now = asyncio.get_running_loop().time()
    _, connection, transport = connect()
    transport.waiting = 100_000
    connection.data_received(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    await turns()
    connection.handle_timeout(now + CLOSE_S + 1)
    assert transport.aborted
    connection.connection_lost(None)


async def test_chunks_of_one_turn_are_sent_in_one_write() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"one")
        exchange.write(b"three")
        exchange.end()

    _, connection, transport = connect(handler)
    connection.data_received(GET)
    await turns()
    assert transport.writes == 1
    assert transport.written.endswith(b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n")
    connection.connection_lost(None)


@pytest.mark.parametrize(
    "request_bytes", [GET.replace(b"GET", b"HEAD"), b"GET /g HTTP/1.0\r\n\r\n"]
)
async def test_head_and_http_1_0_callers_get_no_chunks(request_bytes: bytes) -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        exchange.write(b"body")
        exchange.end()

    _, connection, transport = connect(handler)
    connection.data_received(request_bytes)
    await turns()
    assert b"transfer-encoding" not in transport.written
    old = b"1.0" in request_bytes
    assert bodies(transport.written) == [b"body" if old else b""]
    assert transport.closed is old
    connection.connection_lost(None)


async def test_continue_is_said_when_the_handler_reads_and_not_before() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        await echo(exchange)

    _, connection, transport = connect(handler)
    head, body = POST.split(b"\r\n\r\n")
    connection.data_received(head + b"\r\nExpect: 100-continue\r\n\r\n")
    await turns()
    assert not transport.written
    gate.set()
    await turns()
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(body)
    await turns()
    assert transport.written.endswith(b"/p:hello")
    connection.connection_lost(None)


async def test_an_early_answer_to_a_large_upload_says_close_and_drops_the_rest() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(413, [(b"content-length", b"0")])
        exchange.end()

    edge, connection, transport = connect(handler)
    connection.data_received(POST.replace(b": 5", b": 9999999"))
    await turns()
    assert b"connection: close" in transport.written
    connection.data_received(GET * 10)
    await turns()
    assert edge.counters.requests == 1
    connection.connection_lost(None)


async def test_reading_stops_at_the_read_ahead_and_goes_on_when_the_handler_takes() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        await echo(exchange)

    _, connection, transport = connect(handler)
    connection.data_received(POST.replace(b": 5", b": 200000"))
    connection.data_received(b"x" * READ_AHEAD_BYTES)
    assert not transport.reading
    gate.set()
    await turns()
    assert transport.reading
    connection.connection_lost(None)


@pytest.mark.parametrize("how", ["eof", "lost"])
async def test_a_caller_that_goes_away_cancels_its_handler(how: str) -> None:
    cancelled = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        try:
            await asyncio.Event().wait()
        finally:
            exchange.write(b"into the void")
            cancelled.set()

    edge, connection, _ = connect(handler)
    connection.data_received(GET)
    await turns()
    if how == "eof":
        connection.eof_received()
    else:
        connection.connection_lost(None)
    await turns()
    assert cancelled.is_set()
    assert edge.serving == 0
    assert edge.counters.callers_gone == 1
    if how == "eof":
        connection.connection_lost(None)


async def test_a_short_or_open_response_is_cut_not_ended() -> None:
    async def short(exchange: Exchange) -> None:
        exchange.start(200, [(b"content-length", b"5")])
        exchange.write(b"four")
        exchange.end()

    async def forgets(exchange: Exchange) -> None:
        exchange.start(200, [])

    async def raises(exchange: Exchange) -> None:
        exchange.start(200, [])
        raise RequestError("late")

    for handler in (short, forgets, raises):
        edge, connection, transport = connect(handler)
        connection.data_received(GET)
        await turns()
        assert transport.aborted
        assert edge.counters.cut == 1
        connection.connection_lost(None)


async def test_a_response_field_that_would_split_the_response_never_leaves() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [(b"x", b"1\r\nset-cookie: evil=1")])

    _, connection, transport = connect(handler)
    connection.data_received(GET)
    await turns()
    assert b"evil" not in transport.written
    assert transport.written.startswith(b"HTTP/1.1 502 ")
    connection.connection_lost(None)


async def test_deadlines_of_head_body_idleness_and_a_stuck_reader() -> None:
    now = asyncio.get_running_loop().time()
    _, connection, transport = connect()
    connection.data_received(b"GET / HT")
    connection.handle_timeout(now + HEAD_DEADLINE_S + 1)
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    connection.connection_lost(None)

    _, connection, transport = connect()
    connection.data_received(POST[:-1])
    await turns()
    connection.handle_timeout(now + BODY_STALL_S + 1)
    await turns()
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    connection.connection_lost(None)

    _, connection, transport = connect()
    connection.data_received(GET)
    await turns()
    connection.handle_timeout(now + HEAD_DEADLINE_S + 1)
    assert not transport.closed
    connection.handle_timeout(now + IDLE_TIMEOUT_S + 1)
    assert transport.closed
    connection.connection_lost(None)

    _, connection, transport = connect()
    transport.stuck = True
    connection.pause_writing()
    connection.handle_timeout(now + WRITE_STALL_S + 1)
    assert transport.aborted
    connection.connection_lost(None)


async def test_a_slow_reader_pauses_its_handler_and_resumes_it() -> None:
    seen: list[str] = []

    async def handler(exchange: Exchange) -> None:
        exchange.on_resume = lambda: seen.append("resumed")
        exchange.start(200, [])
        seen.append(f"paused={exchange.paused}")
        exchange.write(b"x" * 100_000)
        seen.append(f"paused={exchange.paused}")
        await asyncio.Event().wait()

    _, connection, _ = connect(handler)
    connection.data_received(GET)
    await turns()
    assert seen == ["paused=False", "paused=True", "resumed"]
    connection.pause_writing()
    connection.resume_writing()
    assert seen[-1] == "resumed"
    assert len(seen) == 4
    connection.connection_lost(None)
    await turns()


async def test_an_upgrade_hands_the_transport_and_what_came_with_it_to_the_tunnel() -> None:
    class Tunnel(asyncio.Protocol):
        made = False
        got = b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.made = True

        def data_received(self, data: bytes) -> None:
            self.got += data

    tunnel, transport = Tunnel(), FakeTransport()
    edge = Edge(echo, tunnel_factory=lambda: tunnel)
    connection = H1Connection(edge)
    connection.connection_made(transport.as_transport())
    connection.data_received(
        b"GET /wai HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: wai/1\r\n\r\nHELLO"
    )
    assert transport.written.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert transport.protocol is tunnel
    assert (tunnel.made, tunnel.got) == (True, b"HELLO")
    assert not edge.connections


async def test_a_drain_answers_running_requests_with_close_and_closes_idle_connections() -> None:
    gate = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await gate.wait()
        await echo(exchange)

    edge, busy, transport = connect(handler)
    idle, idle_transport = H1Connection(edge), FakeTransport()
    idle.connection_made(idle_transport.as_transport())
    busy.data_received(GET)
    await turns()
    drained = asyncio.ensure_future(edge.drain(30))
    await turns()
    idle.close_if_idle()
    busy.close_if_idle()
    assert idle_transport.closed
    assert not transport.closed
    gate.set()
    await turns()
    assert b"connection: close" in transport.written
    assert transport.closed
    idle.connection_lost(None)
    busy.connection_lost(None)
    assert await drained == 0
