"""One exchange with a node: what the gateway holds of a stream inside a session."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from wai_protocol.errors import Fault
from wai_protocol.surface import Headers
from wai_relay.contracts.upstream import Sink, UpstreamStream
from wai_transport.live_session import LiveSession


class _Nobody:
    """A sink for what nobody waits for any more."""

    def on_headers(self, status: int, headers: Headers) -> None:
        """See `Sink`."""

    def on_data(self, data: bytes) -> None:
        """See `Sink`."""

    def on_end(self) -> None:
        """See `Sink`."""

    def on_reset(self, fault: Fault, reason: str) -> None:
        """See `Sink`."""


NOBODY: Final = _Nobody()


class SessionOfStream(Protocol):
    """What a stream asks of the session that it goes over (`session.NodeSession`)."""

    @property
    def live(self) -> LiveSession:
        """Takes what the stream sends."""

    @property
    def streams(self) -> dict[int, NodeStream]:
        """The open streams by number; one that is over removes itself."""

    def given_up(self, stream_id: int, stream: NodeStream, /) -> None:
        """The stream is reset; the node may still tell what it took."""


class NodeStream(UpstreamStream):
    """One exchange with a node."""

    __slots__ = ("_drained", "_id", "_session", "sink")

    def __init__(self, session: SessionOfStream, stream_id: int, sink: Sink) -> None:
        self._session: SessionOfStream | None = session
        self._id = stream_id
        self._drained: asyncio.Future[None] | None = None
        self.sink = sink

    def write(self, data: bytes) -> bool:
        """See `UpstreamStream`."""
        if self._session is None:
            return True
        live = self._session.live
        more = live.core.send_data(self._id, data)
        live.flush()
        if not more and self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
        return more

    async def drain(self) -> None:
        """See `UpstreamStream`."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def end(self) -> None:
        """See `UpstreamStream`."""
        if self._session is not None:
            self._session.live.core.end_stream(self._id)
            self._session.live.flush()

    def reset(self, fault: Fault, reason: str = "") -> None:
        """See `UpstreamStream`."""
        if self._session is not None:
            session = self._session
            session.given_up(self._id, self)
            self.over()
            self.sink = NOBODY
            session.live.core.reset_stream(self._id, fault, reason)
            session.live.flush()

    def consume(self, n: int) -> None:
        """See `UpstreamStream`."""
        if self._session is not None:
            self._session.live.consume(self._id, n)

    def writable(self) -> None:
        """What waited has left."""
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def failed(self) -> None:
        """The sink raised: tell it that the answer is broken, so that its caller does not wait."""
        sink, self.sink = self.sink, NOBODY
        self.over()
        sink.on_reset(Fault.INTERNAL, "the relay failed on this answer; see its log")

    def over(self) -> None:
        """No more comes or goes. Idempotent."""
        if self._session is not None:
            self._session.streams.pop(self._id, None)
            self._session = None
            self.writable()
