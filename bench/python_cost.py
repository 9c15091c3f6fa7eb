"""`python -m bench.python_cost`: CPU time of a request and of an event in our Python alone.

The relay's parts are those of a running relay, from a caller's connection to a node's session, and
the node's those from the session to an upstream's connection; sockets and TLS are fakes that cost
nothing. Each figure is the least of many batches, so that it varies little on a busy machine. It
tells whether a change helped, not what a request costs, since caches are warm here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import logging
import pstats
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol, cast

import uvloop

from bench.wire import MODEL, STREAM_PATH, event_chunk
from wai_api.limits import KeyLimits
from wai_node.agent import Agent
from wai_node.forwarding.forward import Forwarder
from wai_node.upstreams.board import Board
from wai_node.upstreams.tally import OpenStream, Report, TokensSpent
from wai_node.upstreams.upstream import Probe, Upstream
from wai_protocol.events import DataReceived, StreamEnded, StreamOpened
from wai_protocol.handshake import Hello, ProvenHello
from wai_protocol.identity import NodeKey
from wai_protocol.invite import decode
from wai_protocol.limits import Limits
from wai_protocol.session import Role, Session
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.access.keys import KeyRing
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.nodes import ConnectedFleet
from wai_relay.fleet.registry import NodeRegistry
from wai_relay.gateway.dispatch import ScheduledDispatcher
from wai_relay.gateway.gateway import Gateway
from wai_relay.gateway.settling import SettlingDispatcher
from wai_relay.http.edge import Edge
from wai_relay.http.h1 import H1Connection
from wai_relay.observe.access_log import AccessLog
from wai_relay.observe.metrics import Metrics
from wai_relay.observe.pulse import Pulse
from wai_relay.policy.admission import Admission
from wai_relay.storage import SqliteStore
from wai_relay.usage import UsageRecorder
from wai_transport.http_client import HttpClient
from wai_transport.http_connection import HttpConnection
from wai_transport.live_session import LiveSession
from wai_transport.read_buffer import READ_BUFFER

BATCH: Final = 200
_BODY: Final = (
    b'{"model":"bench","messages":[{"role":"system","content":"You are a helpful assistant."},'
    b'{"role":"user","content":"What is the answer to everything?"}],"stream":%b}'
)
_ANSWER: Final = (
    b'{"id":"chatcmpl-5f2a81c0d9","object":"chat.completion","created":1790000000,"model":"bench",'
    b'"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"42."}}]'
    b',"usage":{"prompt_tokens":21,"completion_tokens":4,"total_tokens":25}}'
)
_CALLER_HEADERS: Final = (
    b"Host: llm.example.com\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\n"
    b"User-Agent: OpenAI/Python 3.54.0\r\nContent-Type: application/json\r\n"
    b"X-Stainless-Lang: python\r\nX-Stainless-Async: false\r\n"
)


class FakeTransport:
    """A transport that stores what is written in `sent`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def writelines(self, pieces: list[bytes]) -> None:
        self.sent += pieces

    def take(self) -> list[bytes]:
        sent, self.sent = self.sent, []
        return sent

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("203.0.113.7", 4711) if name == "peername" else default

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Meter(Protocol):
    """Measures what happens between `run` and `stop`, batch by batch."""

    def run(self) -> None: ...

    def stop(self) -> None: ...

    def end_batch(self, size: int) -> None: ...


class CpuMeter:
    """Adds up the CPU time of this thread between `run` and `stop`, batch by batch."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        self.batches: list[float] = []
        self._profile = profile
        self._spent = self._began = 0

    def run(self) -> None:
        if self._profile is not None:
            self._profile.enable()
        self._began = time.thread_time_ns()

    def stop(self) -> None:
        self._spent += time.thread_time_ns() - self._began
        if self._profile is not None:
            self._profile.disable()

    def end_batch(self, size: int) -> None:
        self.batches.append(self._spent / size / 1000)
        self._spent = 0

    @property
    def least_us(self) -> float:
        return min(self.batches)


def feed(transport: FakeTransport, data: bytes) -> None:
    """Deliver `data` over a tunnel's transport."""
    READ_BUFFER[: len(data)] = data
    cast(asyncio.BufferedProtocol, transport.protocol).buffer_updated(len(data))


async def turns(count: int = 3) -> None:
    """Let the event loop run scheduled callbacks."""
    for _ in range(count):
        await asyncio.sleep(0)


class RelayRig:
    """A relay with one caller and one node, whose end of the session is driven here."""

    def __init__(self, edge: Edge, secret: str, node: Session, tunnel: FakeTransport) -> None:
        self.secret = secret
        self.node = node
        self.tunnel = tunnel
        self.caller = FakeTransport()
        self.connection = H1Connection(edge)
        self.connection.connection_made(cast(asyncio.Transport, self.caller))

    @classmethod
    async def make(cls, folder: Path, stack: contextlib.AsyncExitStack) -> RelayRig:
        store = SqliteStore.open(folder / "relay.db")
        stack.push_async_callback(store.close)
        registry = await NodeRegistry.load(store)
        invites = Invites(store, registry)
        _, text = await invites.create(InviteAddress("https://relay.example", b"r" * 32, None))
        node_key = NodeKey.generate()
        await invites.redeem(decode(text).secret, node_key.public, "box")
        fleet = ConnectedFleet(registry, invites)
        admission = await fleet.admit(
            ProvenHello(Hello(node_key.public, "box", b"", instance="a", tunnel=0), None)
        )
        tunnel = FakeTransport()
        admission.session.attach(cast(asyncio.Transport, tunnel), 0)
        node = Session(Role.NODE, local=admission.welcome.limits)
        node.attach(0, 0.0, peer=admission.welcome.limits)
        keys = await KeyRing.load(store)
        _, secret = await keys.create("app", KeyLimits())
        recorder = await UsageRecorder.load(store, lambda: 86400.0)
        dispatcher = ScheduledDispatcher(fleet)
        fleet.on_change = dispatcher.node_changed
        gateway = Gateway(
            keys,
            fleet,
            SettlingDispatcher(dispatcher, fleet),
            AccessLog(Metrics(Pulse(recorder))),
            admission=Admission(recorder.months),
            correct=recorder.correct,
        )
        rig = cls(Edge(gateway.handle), secret, node, tunnel)
        stack.push_async_callback(recorder.close)
        node.send_status(NodeStatus((ModelStatus(MODEL, "openai@origin", slots_total=8),)))
        await rig.tell()
        return rig

    async def tell(self) -> None:
        """Deliver to the relay what its node has to send."""
        while data := self.node.bytes_to_send():
            feed(self.tunnel, data)
        await turns()

    def hear(self) -> list[int]:
        """Deliver to the node what the relay sent; return the streams with complete requests."""
        whole = []
        for data in self.tunnel.take():
            for event in self.node.receive_data(data, time.monotonic()):
                match event:
                    case StreamOpened(stream=stream, end=True) | StreamEnded(stream=stream):
                        whole.append(stream)
                    case DataReceived(stream=stream, data=body):
                        self.node.consume(stream, len(body))
                    case _:
                        pass
        return whole

    def request(self, *, stream: bool) -> bytes:
        body = _BODY % (b"true" if stream else b"false")
        head = b"POST /v1/chat/completions HTTP/1.1\r\n%bAuthorization: Bearer %b\r\n"
        head %= (_CALLER_HEADERS, self.secret.encode())
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)

    async def requests(self, meter: Meter, batches: int, size: int = BATCH) -> None:
        """Small requests, one after another."""
        wanted = self.request(stream=False)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(_ANSWER)),
        ]
        for _ in range(batches):
            for _ in range(size):
                meter.run()
                self.connection.data_received(wanted)
                await turns()
                meter.stop()
                (stream,) = self.hear()
                self.node.send_headers(stream, 200, headers)
                self.node.send_data(stream, _ANSWER)
                self.node.end_stream(stream)
                data = self.node.bytes_to_send()
                meter.run()
                feed(self.tunnel, data)
                await turns()
                meter.stop()
                self.hear()
                (answer,) = self.caller.take()
                assert _ANSWER in answer, answer
            meter.end_batch(size)

    async def events(self, meter: Meter, batches: int, size: int = BATCH) -> None:
        """The events of one stream, each in a turn of its own."""
        self.connection.data_received(self.request(stream=True))
        await turns()
        (stream,) = self.hear()
        self.node.send_headers(stream, 200, [(b"content-type", b"text/event-stream")])
        event = _payload(event_chunk(1))
        for _ in range(batches):
            for _ in range(size):
                self.node.send_data(stream, event)
                data = self.node.bytes_to_send()
                meter.run()
                feed(self.tunnel, data)
                await asyncio.sleep(0)
                meter.stop()
                self.hear()
                self.caller.take()
            meter.end_batch(size)


class _FakeClient(HttpClient):
    transport: FakeTransport
    connection: HttpConnection

    async def _dial(self) -> HttpConnection:
        self.transport = FakeTransport()
        self.connection = HttpConnection(self._keep, self._forget)
        self.connection.connection_made(cast(asyncio.Transport, self.transport))
        self._connections.add(self.connection)
        return self.connection


class _FakeUpstream(Upstream):
    kind = "openai"

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.client: _FakeClient = _FakeClient(self.origin)

    async def probe(self) -> Probe:
        return Probe(self.models([self.model(MODEL)]))


class _Accounts:
    def __init__(self, board: Board) -> None:
        self._board = board

    def started(self, upstream: Upstream, model: str, stream: OpenStream, /) -> None:
        self._board.started(upstream, model, stream)

    def ended(
        self, upstream: Upstream, model: str, stream: OpenStream, spent: TokensSpent, /
    ) -> None:
        self._board.ended(upstream, model, stream, spent)

    def left(self, upstream: Upstream, model: str, stream: OpenStream, report: Report, /) -> None:
        self._board.left(upstream, model, stream, 0.0, report)

    def measured(
        self, upstream: Upstream, model: str, prefill_tps: float | None, decode_tps: float | None
    ) -> None:
        self._board.measured(upstream, model, prefill_tps, decode_tps)


class _Agent(Agent):
    """Only what carries events to streams."""

    def __init__(self, forwarder: Forwarder) -> None:
        self.forwarder = forwarder
        self.draining = False


class NodeRig:
    """A node with one upstream, and its relay's end of the session, which is driven here."""

    def __init__(self, upstream: _FakeUpstream, live: LiveSession, relay: Session) -> None:
        self.upstream = upstream
        self.live = live
        self.relay = relay
        self.tunnel = FakeTransport()
        live.attach(cast(asyncio.Transport, self.tunnel), 0)

    @classmethod
    async def make(cls) -> NodeRig:
        upstream = _FakeUpstream()
        board = Board()
        board.add(upstream)
        board.probed(upstream, await upstream.probe())
        agent = _Agent(Forwarder(board, _Accounts(board)))
        limits = Limits()
        core = Session(Role.NODE, local=limits)
        live = LiveSession(
            core,
            on_event=lambda event: agent.on_event(live, event),
            on_detached=lambda _: None,
            on_ended=lambda *_: None,
            ttl_s=60.0,
        )
        relay = Session(Role.RELAY, local=limits)
        relay.attach(0, 0.0, peer=limits)
        rig = cls(upstream, live, relay)
        await turns()
        return rig

    def hear(self) -> None:
        for data in self.tunnel.take():
            for event in self.relay.receive_data(data, time.monotonic()):
                if isinstance(event, DataReceived):
                    self.relay.consume(event.stream, len(event.data))

    def open(self, *, stream: bool) -> bytes:
        body = _BODY % (b"true" if stream else b"false")
        headers = [(b"content-type", b"application/json"), (b"x-request-id", b"req_" + b"a" * 24)]
        number = self.relay.open_stream("POST", STREAM_PATH, headers, MODEL, end=False)
        self.relay.send_data(number, body)
        self.relay.end_stream(number)
        return self.relay.bytes_to_send()

    async def requests(self, meter: Meter, batches: int, size: int = BATCH) -> None:
        """Small requests, one after another."""
        answer = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        )
        answer %= (len(_ANSWER), _ANSWER)
        for _ in range(batches):
            for _ in range(size):
                data = self.open(stream=False)
                meter.run()
                feed(self.tunnel, data)
                await turns()
                self.upstream.client.connection.data_received(answer)
                await turns()
                meter.stop()
                self.hear()
                self.upstream.client.transport.take()
            meter.end_batch(size)

    async def events(self, meter: Meter, batches: int, size: int = BATCH) -> None:
        """The events of one stream, each in a turn of its own."""
        feed(self.tunnel, self.open(stream=True))
        await turns()
        connection = self.upstream.client.connection
        connection.data_received(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = event_chunk(1)
        for _ in range(batches):
            for _ in range(size):
                meter.run()
                connection.data_received(chunk)
                await asyncio.sleep(0)
                meter.stop()
                self.hear()
                while data := self.relay.bytes_to_send():  # its credit
                    feed(self.tunnel, data)
            meter.end_batch(size)


def _payload(chunk: bytes) -> bytes:
    return chunk.partition(b"\r\n")[2][:-2]


class Part(Protocol):
    """Something that is measured; `size` items make a batch."""

    async def __call__(self, meter: Meter, batches: int, size: int = BATCH, /) -> None: ...


@contextlib.asynccontextmanager
async def parts() -> AsyncIterator[dict[str, Part]]:
    """Yield what can be measured, by name."""
    logging.basicConfig(level=logging.INFO, filename="/dev/null")
    with tempfile.TemporaryDirectory() as folder:
        async with contextlib.AsyncExitStack() as stack:
            relay = await RelayRig.make(Path(folder), stack)
            node = await NodeRig.make()
            yield {
                "relay-request": relay.requests,
                "relay-event": relay.events,
                "node-request": node.requests,
                "node-event": node.events,
            }


async def measure(batches: int, profiled: str | None) -> None:
    async with parts() as all_parts:
        for name, part in all_parts.items():
            if profiled is not None and name != profiled:
                continue
            profile = cProfile.Profile() if profiled else None
            meter = CpuMeter(profile)
            await part(meter, batches)
            middle = statistics.median(meter.batches)
            print(f"{name:14} {meter.least_us:7.1f} µs, median {middle:7.1f}")
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--profile", metavar="PART", help="cProfile one part, as node-request")
    args = parser.parse_args()
    uvloop.run(measure(args.batches, args.profile))


if __name__ == "__main__":
    main()
