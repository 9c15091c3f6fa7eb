"""A slow link for TCP: a forwarder that delays every byte and limits the bytes in flight.

It stands in for `tc netem`, which needs a kernel module. Each direction delays by half the round
trip, and takes at most `window` bytes per round trip, as one TCP connection does whose receiver
offers that window (Linux's default most is 6 MiB). It drops nothing.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from typing import Final, cast

import uvloop

DEFAULT_WINDOW_BYTES: Final = 6 << 20  # net.ipv4.tcp_rmem's largest, as Linux ships it


class Direction(asyncio.Protocol):
    """One end of a forwarded connection: what it reads is written to `other`, later."""

    def __init__(self, one_way_s: float, window: int) -> None:
        self._one_way_s = one_way_s
        self._window = window
        self._under_way = 0
        self._held: deque[bytes] = deque()
        self._transport: asyncio.Transport | None = None
        self.other: Direction | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # the other side's window bounds what waits here; the transport never pauses
        self._transport.set_write_buffer_limits(high=1 << 30)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.other is not None:
            asyncio.get_running_loop().call_later(self._one_way_s, self.other.close)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
            return
        self._under_way += len(data)
        if self._under_way >= self._window and self._transport is not None:
            self._transport.pause_reading()
        loop = asyncio.get_running_loop()
        self._held.append(data)
        loop.call_later(self._one_way_s, self._arrive)
        loop.call_later(2 * self._one_way_s, self._acknowledge, len(data))

    def pair_with(self, other: Direction) -> None:
        """Forward what was and will be received to `other`."""
        self.other = other
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)

    def close(self) -> None:
        """Close this end once everything has been sent."""
        if self._transport is not None:
            self._transport.close()

    def write(self, data: bytes) -> None:
        """Write delayed bytes."""
        if self._transport is not None:
            self._transport.write(data)

    def _arrive(self) -> None:
        if self.other is not None:
            self.other.write(self._held.popleft())

    def _acknowledge(self, size: int) -> None:
        was_full = self._under_way >= self._window
        self._under_way -= size
        if was_full and self._under_way < self._window and self._transport is not None:
            self._transport.resume_reading()


async def serve(port: int, target_port: int, round_trip_s: float, window: int) -> None:
    """Forward `port` of loopback to `target_port`, until killed; prints `ready PORT`."""
    loop = asyncio.get_running_loop()
    dialling: set[asyncio.Task[None]] = set()

    def accept() -> Direction:
        near = Direction(round_trip_s / 2, window)
        task = loop.create_task(dial(near))
        dialling.add(task)
        task.add_done_callback(dialling.discard)
        return near

    async def dial(near: Direction) -> None:
        _, far = await loop.create_connection(
            lambda: Direction(round_trip_s / 2, window), "127.0.0.1", target_port
        )
        far.pair_with(near)
        near.pair_with(far)

    server = await loop.create_server(accept, "127.0.0.1", port)
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--target-port", type=int, required=True)
    parser.add_argument("--round-trip-ms", type=float, default=200.0)
    parser.add_argument("--window", type=int, default=DEFAULT_WINDOW_BYTES)
    args = parser.parse_args()
    uvloop.run(serve(args.port, args.target_port, args.round_trip_ms / 1000, args.window))


if __name__ == "__main__":
    main()
