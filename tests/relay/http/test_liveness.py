"""Callers that vanish without a FIN are found out in 30 s; those that only read nothing live on."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.connection
import pytest

from tests.harness.network_namespace import OUTSIDE, network_namespace
from wai_relay.gateway.limits import GatewayLimits
from wai_relay.http import connection as connection_room
from wai_relay.http import liveness
from wai_relay.http.edge import Edge, Handler
from wai_relay.http.exchange import Exchange
from wai_relay.http.h1 import H1Connection
from wai_relay.http.listener import Listener
from wai_relay.http.liveness import ALIVE_CHECK_S

from .fakes import FakeTransport, turns

pytestmark = pytest.mark.anyio

FREED_S = 30.0
ANSWER_BYTES = 8 * 1024 * 1024

# Opens a connection for each argument (bytes in hexadecimal), says them, and reads what comes, but
# nothing from those whose bytes end with a dot.
CALLER = """
import selectors, socket, sys
ready = selectors.DefaultSelector()
unread = []
for said in sys.argv[3:]:
    sock = socket.socket()
    if said.endswith("."):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.sendall(bytes.fromhex(said.rstrip(".")))
    if said.endswith("."):
        unread.append(sock)
        continue
    ready.register(sock, selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        if not key.fileobj.recv(65536):
            ready.unregister(key.fileobj)
"""


@asynccontextmanager
async def serving(handler: Handler, host: str) -> AsyncIterator[tuple[Edge, int]]:
    edge = Edge(handler)
    listener = Listener(edge)
    await listener.open(host=host, port=0, tls=None)
    try:
        yield edge, listener.addresses[0][1]
    finally:
        await listener.close()
        await edge.drain(0.1)


def h1(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def h2_bytes(path: str) -> bytes:
    caller = h2.connection.H2Connection()
    caller.initiate_connection()
    caller.increment_flow_control_window(1 << 30)
    fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a")]
    caller.send_headers(1, fields, end_stream=True)
    caller.increment_flow_control_window(1 << 30, 1)
    return caller.data_to_send()


class Vanished:
    """A handler that notes whose answers nobody waits for any more."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.stalled = 0
        """How many answers wait for a caller that does not read."""

    async def __call__(self, exchange: Exchange) -> None:
        path = exchange.request.path
        try:
            if path == "/waits":
                await asyncio.Event().wait()
            exchange.start(200, [])
            if path == "/unread":
                exchange.write(b"x" * ANSWER_BYTES)
                self.stalled += 1
            while True:
                if not exchange.paused:
                    exchange.write(b"x" * (100 if path == "/tokens" else 10_000))
                await asyncio.sleep(0.02)
        finally:
            self.gone.append(f"{exchange.request.http_version} {path}")


@pytest.mark.long
async def test_a_caller_that_vanishes_is_gone_in_30_s_whatever_it_waited_for() -> None:
    paths = ("/waits", "/tokens", "/much", "/unread")
    said = [*map(h1, paths), *map(h2_bytes, paths)]
    ends = ["", "", "", "."] * 2
    handler = Vanished()
    with network_namespace() as namespace:
        async with serving(handler, OUTSIDE) as (edge, port):
            arguments = [
                OUTSIDE,
                str(port),
                *(s.hex() + e for s, e in zip(said, ends, strict=True)),
            ]
            caller = subprocess.Popen(  # noqa: ASYNC220
                [*namespace.command, sys.executable, "-c", CALLER, *arguments]
            )
            try:
                async with asyncio.timeout(20):
                    while edge.serving < len(said):  # noqa: ASYNC110  # nobody tells
                        await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                async with asyncio.timeout(20):
                    while handler.stalled < 2:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                assert not handler.gone
                down = ("ip", "-n", namespace.name, "link", "set", namespace.device, "down")
                subprocess.run(down, check=True)  # noqa: ASYNC221
                async with asyncio.timeout(FREED_S):
                    while edge.connections:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            finally:
                caller.kill()
                caller.wait()
    assert sorted(handler.gone) == sorted(f"{v} {p}" for v in ("1.1", "2") for p in paths)


@pytest.mark.long
async def test_a_caller_that_reads_nothing_for_longer_gets_its_whole_answer() -> None:
    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [(b"content-length", b"%d" % ANSWER_BYTES)])
        exchange.write(b"x" * ANSWER_BYTES)
        exchange.end()

    async with serving(handler, "127.0.0.1") as (edge, port):
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, h1("/"))
        await asyncio.sleep(liveness.GONE_S + ALIVE_CHECK_S)
        assert edge.connections
        read = 0
        while read < ANSWER_BYTES:
            data = await loop.sock_recv(sock, 1 << 20)
            assert data
            read += len(data)
        sock.close()


def test_the_kernels_own_bounds_add_up_to_less_than_30_s() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for sock in (socket.create_connection(server.getsockname()), server.accept()[0]):
            with sock:
                liveness.watch(sock)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                if hasattr(socket, "TCP_USER_TIMEOUT"):
                    limit = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                    assert limit == liveness.GONE_S * 1000
    assert GatewayLimits().heartbeat_s + liveness.GONE_S < FREED_S
    assert GatewayLimits().heartbeat_s > liveness.GONE_S
    assert ALIVE_CHECK_S * 2 < liveness.GONE_S


class Stalled(FakeTransport):
    """A transport over a real socket whose peer reads nothing."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.sock if name == "socket" else super().get_extra_info(name, default)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has it")
async def test_the_kernel_waits_longer_only_while_a_live_caller_has_closed_its_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def limit() -> int:
        return ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with caller, ours:
        ours.setblocking(False)
        try:
            while True:
                ours.send(b"x" * 65_536)
                await asyncio.sleep(0)
        except BlockingIOError:
            pass
        await asyncio.sleep(0.5)  # until all that fits is acknowledged
        transport = Stalled(ours)
        connection = H1Connection(Edge(handler))
        connection.connection_made(transport.as_transport())
        connection.data_received(h1("/"))
        await turns()
        assert limit() == liveness.GONE_S * 1000
        state = liveness.peer_state(ours)
        assert state is not None
        assert state.has_closed_window
        assert not state.has_vanished
        now = asyncio.get_running_loop().time()
        connection.pause_writing()
        with monkeypatch.context() as patched:
            patched.setattr(connection_room, "peer_state", lambda _: closed(100.0))
            connection.handle_timeout(now + ALIVE_CHECK_S + 1)
        assert limit() == (100.0 + liveness.PROBE_S) * 1000
        connection.resume_writing()
        assert limit() == liveness.GONE_S * 1000
        connection.pause_writing()
        with monkeypatch.context() as patched:
            patched.setattr(
                connection_room, "peer_state", lambda _: closed(100.0, probes=4, last_ack_s=26.0)
            )
            connection.handle_timeout(now + 2 * ALIVE_CHECK_S + 2)
        assert transport.aborted
        connection.connection_lost(None)
        await turns()


def closed(
    last_data_s: float,
    *,
    probes: int = 1,
    last_ack_s: float = 1.0,
    unacked: int = 0,
    unsent: int = 500,
) -> liveness.PeerState:
    return liveness.PeerState(unsent, unacked, probes, last_data_s, last_ack_s)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has it")
async def test_a_caller_of_a_slow_answer_that_pauses_is_not_taken_for_vanished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel has room for a slow answer long after the caller's window is closed."""

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with caller, ours:
        connection = H1Connection(Edge(handler))
        connection.connection_made(Stalled(ours).as_transport())
        connection.data_received(h1("/"))
        await turns()
        now = asyncio.get_running_loop().time()
        for state, limit_s in (
            (closed(100.0), 100.0 + liveness.PROBE_S),
            (closed(100.0, unacked=1), liveness.GONE_S),
            (closed(100.0, unsent=0), liveness.GONE_S),  # it waits for the first token
        ):
            now += liveness.WATCH_S + 1
            monkeypatch.setattr(connection_room, "peer_state", lambda _, state=state: state)
            connection.handle_timeout(now)
            limit = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert limit == limit_s * 1000
        connection.connection_lost(None)
        await turns()


def test_a_closed_window_is_probed_often_and_one_lost_probe_is_no_sign() -> None:
    for last_data_s in (0.0, 3.0, 20.0, 119.0):
        left_s = closed(last_data_s).user_timeout_s - last_data_s
        assert left_s >= liveness.PROBE_S > ALIVE_CHECK_S * 2
    assert not closed(60.0, probes=1, last_ack_s=50.0).has_vanished
    assert not closed(60.0, probes=3, last_ack_s=20.0).has_vanished
    assert not closed(60.0, probes=3, last_ack_s=50.0, unacked=1).has_vanished
    assert closed(60.0, probes=3, last_ack_s=liveness.UNANSWERED_S).has_vanished
    assert liveness.UNANSWERED_S + ALIVE_CHECK_S < FREED_S
