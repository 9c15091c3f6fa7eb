"""Nodes in memory, without session or socket, whose answers a test scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio

from wai_protocol.errors import Fault, WaiError
from wai_protocol.status import ModelStatus, NodeStatus
from wai_protocol.surface import Headers
from wai_relay.contracts.upstream import ServingNode, Sink, UpstreamStream

SSE: Headers = [(b"content-type", b"text/event-stream")]
JSON: Headers = [(b"content-type", b"application/json")]
Script = Callable[["FakeStream"], None]


class FakeStream(UpstreamStream):
    """A stream that records what the gateway sends, and lets the test answer."""

    def __init__(
        self, node: FakeNode, method: str, target: str, headers: Headers, model: str, sink: Sink
    ) -> None:
        self.node = node
        self.method = method
        self.target = target
        self.headers = headers
        self.model = model
        self.sink = sink
        self.written: list[bytes] = []
        self.ended = False
        self.reset_with: Fault | None = None
        self.consumed = 0
        self.room = anyio.Event()

    @property
    def body(self) -> bytes:
        """The request's body so far."""
        return b"".join(self.written)

    def write(self, data: bytes) -> bool:
        self.written.append(data)
        return not self.node.congested

    async def drain(self) -> None:
        await self.room.wait()

    def end(self) -> None:
        self.ended = True
        self.node.script(self)

    def reset(self, fault: Fault, reason: str = "") -> None:
        if self.reset_with is None:  # a stream ends once
            self.reset_with = fault

    def consume(self, n: int) -> None:
        self.consumed += n

    def answer(self, status: int, headers: Headers, *chunks: bytes) -> None:
        """A whole answer, chunk by chunk."""
        self.sink.on_headers(status, headers)
        for chunk in chunks:
            self.sink.on_data(chunk)
        self.sink.on_end()


def say_nothing(stream: FakeStream) -> None:
    """The script of an upstream that hangs."""


class FakeNode(ServingNode):
    """A node; `script` runs when a request is complete."""

    kind = "node"

    def __init__(
        self, name: str, *models: ModelStatus, script: Script = say_nothing, ready: bool = True
    ) -> None:
        self.name = name
        self.status = NodeStatus(models=models)
        self.script = script
        self.is_ready = ready
        self.congested = False
        self.refuses: WaiError | None = None
        self.streams: list[FakeStream] = []

    @property
    def ready(self) -> bool:
        return self.is_ready

    def open(
        self, method: str, target: str, headers: Headers, model: str, sink: Sink, *, end: bool
    ) -> FakeStream:
        if self.refuses is not None:
            raise self.refuses
        stream = FakeStream(self, method, target, headers, model, sink)
        self.streams.append(stream)
        return stream


class FakeFleet:
    """A handful of nodes. Since tests change them as they like, it always may have changed."""

    def __init__(self, *members: FakeNode) -> None:
        self.members = list(members)
        self._asked = 0

    @property
    def changes(self) -> int:
        self._asked += 1
        return self._asked

    def nodes(self) -> Iterable[FakeNode]:
        return self.members
