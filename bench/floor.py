"""The floor: two processes that forward bytes and do nothing else, in Python with uvloop.

    caller — TLS → relay — one TLS connection for all, frames with a head of 8 bytes → node → origin

They read no HTTP, check no key, choose nothing, count nothing, and trust each other. So they show
what two TLS hops and a tunnel cost at the least in this language; what ours costs beyond that is
our own doing. Run by `bench.peers.floor`; never put it on a network.

A frame is the number of a connection, a length (0: the connection is over), and as many bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import struct
from collections.abc import Callable
from typing import Final, cast

import uvloop

_HEAD: Final = struct.Struct(">II")
_BACKLOG: Final = 4096


class End(asyncio.Protocol):
    """One end of a forwarded connection: a caller at the relay, the origin at the node."""

    def __init__(self, tunnel: Tunnel, number: int) -> None:
        self.tunnel = tunnel
        self.number = number
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []  # what came for it before it was connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.tunnel.ends[self.number] = self
        self.transport.writelines(self.early)
        self.early.clear()

    def data_received(self, data: bytes) -> None:
        self.tunnel.send(self.number, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.tunnel.ends.pop(self.number, None) is not None:
            self.tunnel.send(self.number, b"")

    def pause_writing(self) -> None:
        self.tunnel.pause(self.number)

    def resume_writing(self) -> None:
        self.tunnel.resume(self.number)


class Tunnel(asyncio.Protocol):
    """The connection between the two. `opened` makes the other end of a new number."""

    def __init__(self, opened: Callable[[Tunnel, int], End | None]) -> None:
        self.ends: dict[int, End] = {}
        self._opened = opened
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._full: set[int] = set()  # ends that are written to faster than they read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        at, size = 0, len(data)
        while size - at >= _HEAD.size:
            number, length = _HEAD.unpack_from(data, at)
            stop = at + _HEAD.size + length
            if stop > size:
                break
            self._deliver(number, data[at + _HEAD.size : stop])
            at = stop
        self._rest = data[at:] if at < size else b""

    def send(self, number: int, data: bytes) -> None:
        """Send the other side what came from the end `number`; nothing: it is over."""
        assert self._transport is not None
        self._transport.write(_HEAD.pack(number, len(data)) + data)

    def pause(self, number: int) -> None:
        """Read no more while the end `number` does not keep up. All others wait with it."""
        self._full.add(number)
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self, number: int) -> None:
        """Read on, if all ends keep up."""
        self._full.discard(number)
        if not self._full and self._transport is not None:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        for end in self.ends.values():
            if end.transport is not None:
                end.transport.pause_reading()

    def resume_writing(self) -> None:
        for end in self.ends.values():
            if end.transport is not None:
                end.transport.resume_reading()

    def _deliver(self, number: int, data: bytes) -> None:
        end = self.ends.get(number)
        if end is None and data:
            end = self._opened(self, number)
        if end is None:
            return
        if not data:
            del self.ends[number]
            if end.transport is not None:
                end.transport.close()
        elif end.transport is None:
            end.early.append(data)
        else:
            end.transport.write(data)


async def relay(callers: int, nodes: int, cert: str, key: str) -> None:
    """Listen for callers and for one node until cancelled."""
    loop = asyncio.get_running_loop()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    tunnel = Tunnel(lambda tunnel, number: None)
    number = 0

    def end() -> End:
        nonlocal number
        number += 1
        return End(tunnel, number)

    await loop.create_server(lambda: tunnel, "127.0.0.1", nodes, ssl=tls)
    await loop.create_server(end, "127.0.0.1", callers, ssl=tls, backlog=_BACKLOG)
    await loop.create_future()


async def node(nodes: int, origin: int, ca: str) -> None:
    """Dial the relay, and the origin for each connection of a caller, until cancelled."""
    loop = asyncio.get_running_loop()
    dialling: set[asyncio.Task[object]] = set()

    def opened(tunnel: Tunnel, number: int) -> End:
        end = tunnel.ends[number] = End(tunnel, number)
        task: asyncio.Task[object] = loop.create_task(
            loop.create_connection(lambda: end, "127.0.0.1", origin)
        )
        dialling.add(task)
        task.add_done_callback(dialling.discard)
        return end

    tls = ssl.create_default_context(cafile=ca)
    await loop.create_connection(lambda: Tunnel(opened), "127.0.0.1", nodes, ssl=tls)
    print("dialled", flush=True)
    await loop.create_future()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    roles = parser.add_subparsers(required=True, dest="role")
    public = roles.add_parser("relay")
    public.add_argument("--callers", type=int, required=True)
    public.add_argument("--cert", required=True)
    public.add_argument("--key", required=True)
    agent = roles.add_parser("node")
    agent.add_argument("--origin", type=int, required=True)
    agent.add_argument("--ca", required=True)
    for role in (public, agent):
        role.add_argument("--nodes", type=int, required=True, help="the relay's port for its node")
    args = parser.parse_args()
    if args.role == "relay":
        uvloop.run(relay(args.callers, args.nodes, args.cert, args.key))
    else:
        uvloop.run(node(args.nodes, args.origin, args.ca))


if __name__ == "__main__":
    main()
