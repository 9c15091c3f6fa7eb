"""A transport without a socket, a clock, and handlers that the edge's tests share."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from wai_relay.http.connection import CallerConnection
from wai_relay.http.exchange import Exchange


class FakeTransport:
    """Keeps what is written; counts as full while `stuck`."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.writes = 0
        self.reading = True
        self.aborted = False
        self.closed = False
        self.protocol: asyncio.BaseProtocol | None = None
        self.stuck = False
        self.waiting = 0
        self._high = 0

    def write(self, data: bytes) -> None:
        self.written += data
        self.writes += 1

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        self._high = high

    def get_write_buffer_size(self) -> int:
        return self._high + 1 if self.stuck else self.waiting

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 5) if name == "peername" else default

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = self.closed = True

    def as_transport(self) -> asyncio.Transport:
        return cast(asyncio.Transport, self)


class SteppingClock:
    """Processor time for `Turns`: each look at it finds that `step_s` was spent since the last."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now = 0.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


async def echo(exchange: Exchange) -> None:
    """Answer with the path and the body."""
    body = b""
    while data := await exchange.read():
        body += data
    answer = exchange.request.path.encode() + b":" + body
    exchange.start(200, [(b"content-length", b"%d" % len(answer))])
    exchange.write(answer)
    exchange.end()


async def turns(count: int = 8) -> None:
    """Let the loop run what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


async def decoded(connection: CallerConnection) -> None:
    """Let the loop run what is due, and `connection` decode all bytes.

    How many turns it needs for them depends on the speed of the machine.
    """
    await turns(20)
    while connection._queued:
        await asyncio.sleep(0.001)
        await turns(20)
