"""Live sessions over real TCP and TLS that is cut 200 times: every byte once and in order.

The handshake is the smallest that can be: each end says how many bytes it has.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import struct
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

import pytest
import trustme

from tests.harness.session_pair import content
from tests.harness.tcp_proxy import TcpProxy, tcp_proxy
from wai_protocol.errors import Fault
from wai_protocol.events import (
    DataReceived,
    Event,
    StreamEnded,
    StreamOpened,
    StreamReset,
    Writable,
)
from wai_protocol.session import Role, Session
from wai_transport.live_session import Ended, LiveSession

pytestmark = pytest.mark.anyio

CUTS: Final = 200
STREAMS: Final = 8  # at a time
MAX_BODY_BYTES: Final = 400_000
MAX_WRITE_BYTES: Final = 30_000
MAX_BYTES_BETWEEN_CUTS: Final = 60_000
COUNT: Final = struct.Struct("!Q")

Ready = Callable[[asyncio.Transport, int, bytes], None]


class Greeting(asyncio.Protocol):
    """Reads the peer's count, and hands the connection over."""

    def __init__(self, hello: bytes, ready: Ready, lost: Callable[[], None]) -> None:
        self._hello = hello
        self._ready: Ready | None = ready
        self._lost = lost
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= COUNT.size and self._ready is not None:
            self._transport.pause_reading()
            ready, self._ready = self._ready, None
            (received,) = COUNT.unpack(self._buffer[: COUNT.size])
            ready(self._transport, received, self._buffer[COUNT.size :])

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


class Peer:
    """One end, which sends and checks bodies of known content on every stream that is open."""

    def __init__(self, role: Role, rng: random.Random) -> None:
        self.role = role
        self.lost = asyncio.Event()
        self.on_end: Callable[[], None] = lambda: None
        self.problems: list[str] = []
        self.streams_done = 0
        self.enough = False
        self._rng = rng
        self._size: dict[int, int] = {}
        self._sent: defaultdict[int, int] = defaultdict(int)
        self._got: defaultdict[int, int] = defaultdict(int)
        self.live = LiveSession(
            Session(role),
            on_event=self._on_event,
            on_detached=lambda live: self.lost.set(),
            on_ended=self._on_ended,
            ttl_s=60.0,
        )

    def open(self) -> None:
        stream = self.live.core.open_stream("POST", "/v1/x", [], "m", end=False)
        self.live.flush()
        self._begin(stream)

    def _begin(self, stream: int) -> None:
        self._size[stream] = self._rng.randrange(1, MAX_BODY_BYTES)
        self._fill(stream)

    def _fill(self, stream: int) -> None:
        more = True
        while more and (left := self._size[stream] - self._sent[stream]):
            size = min(left, self._rng.randrange(1, MAX_WRITE_BYTES))
            data = content(stream, self.role, self._sent[stream], size)
            self._sent[stream] += size
            more = self.live.core.send_data(stream, data)
            self.live.flush()
        if self._sent[stream] == self._size[stream] and more:
            self._sent[stream] += 1  # once
            self.live.core.end_stream(stream)
            self.live.flush()

    def _on_event(self, event: Event) -> None:
        match event:
            case StreamOpened(stream):
                self.live.core.send_headers(stream, 200, [])
                self.live.flush()
                self._begin(stream)
            case DataReceived(stream, data):
                other = Role.NODE if self.role is Role.RELAY else Role.RELAY
                if data != content(stream, other, self._got[stream], len(data)):
                    self.problems.append(f"{stream}: other bytes at {self._got[stream]}")
                self._got[stream] += len(data)
                self.live.consume(stream, len(data))
            case Writable(stream):
                self._fill(stream)
            case StreamEnded(stream):
                self.streams_done += 1
                if self.role is Role.RELAY and not self.enough:
                    self.open()
                if self.enough:
                    self.on_end()
            case StreamReset(stream, fault, reason):
                self.problems.append(f"{stream}: {fault} {reason}")
            case _:
                pass

    def _on_ended(self, live: LiveSession, why: Ended) -> None:
        if why is not Ended.CLOSED:
            self.problems.append(f"ended: {why.value}")
        self.lost.set()

    def complete(self, other: Peer) -> bool:
        """Whether all that the other sent is here."""
        return all(other._size[stream] == self._got[stream] for stream in other._size)


async def dial(node: Peer, proxy: TcpProxy, tls: ssl.SSLContext | None) -> None:
    """One connection of the node's, until it is lost."""
    node.lost.clear()
    host, _, port = proxy.address.partition(":")

    def ready(transport: asyncio.Transport, received: int, rest: bytes) -> None:
        node.live.attach(transport, received, rest)

    with suppress(OSError):  # cut before it stood
        await asyncio.get_running_loop().create_connection(
            lambda: Greeting(COUNT.pack(node.live.core.received), ready, node.lost.set),
            host,
            int(port),
            ssl=tls,
            server_hostname="localhost" if tls is not None else None,
        )
        await node.lost.wait()


def open_sockets() -> int:
    """How many this process has: uvloop keeps other descriptors, which are not ours to count."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_a_session_that_is_cut_200_times_has_every_byte_once_and_in_order(
    secure: bool,
) -> None:
    server_tls, client_tls = contexts() if secure else (None, None)
    loop = asyncio.get_running_loop()
    rng = random.Random(11)
    relay, node = Peer(Role.RELAY, rng), Peer(Role.NODE, rng)
    sockets = open_sockets()
    tasks = asyncio.all_tasks()

    def accept(transport: asyncio.Transport, received: int, rest: bytes) -> None:
        relay.live.drop_connection()
        transport.write(COUNT.pack(relay.live.core.received))
        relay.live.attach(transport, received, rest)

    server = await loop.create_server(
        lambda: Greeting(b"", accept, lambda: None), "127.0.0.1", 0, ssl=server_tls
    )
    with tcp_proxy(server.sockets[0].getsockname()[1]) as proxy:
        for _ in range(STREAMS):
            relay.open()
        while proxy.cuts < CUTS:
            proxy.cut_after(rng.randrange(1, MAX_BYTES_BETWEEN_CUTS))
            await dial(node, proxy, client_tls)
            assert not relay.problems + node.problems
        relay.enough = node.enough = True
        finished = asyncio.Event()

        def look() -> None:
            if relay.streams_done == node.streams_done == len(relay._size):
                finished.set()

        relay.on_end = node.on_end = look
        last = asyncio.ensure_future(dial(node, proxy, client_tls))
        await finished.wait()
        assert not relay.problems + node.problems
        assert relay.complete(node)
        assert node.complete(relay)
        assert relay.live.core.streams == node.live.core.streams == 0
        for peer in (node, relay):
            peer.live.close(Fault.DRAINING, "done")
            assert peer.live._timer is None
            assert peer.live._expiry is None
        await last
    server.close()
    await server.wait_closed()
    assert asyncio.all_tasks() == tasks
    for _ in range(1_000):  # the transports close in their own time
        if open_sockets() <= sockets:
            break
        await asyncio.sleep(0.005)
    assert open_sockets() <= sockets
