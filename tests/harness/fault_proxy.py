"""A TCP proxy between two real processes that injects faults of networks.

It runs on an event loop in a thread of its own; every method may be called from any thread, and has
taken effect when it returns. As with TCP, no bytes are lost within a connection: what a stall holds
back arrives when the stall ends.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from .loop_end import end_connections, stop_listening

_PIECE_BYTES: Final = 16 << 10
_PIECES_UNDER_WAY: Final = 256  # per direction; what a slow network's queues would hold
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST


class Way(enum.Enum):
    """A direction: towards the end that dialled, or towards the target."""

    TO_DIALLER = enum.auto()
    TO_TARGET = enum.auto()


BOTH_WAYS: Final = frozenset(Way)


class FaultProxy:
    """Listens on `host` and forwards to `target_port` of 127.0.0.1. Made by `fault_proxy`."""

    def __init__(self, target_port: int, host: str) -> None:
        self._host = host
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server((host, 0))
        self.port: Final[int] = self._listener.getsockname()[1]
        """The port to dial."""
        self._server: asyncio.Server
        self._links: list[_Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self._reset_at: int | None = None
        self._stop = asyncio.Event()
        self.started = threading.Event()
        self.changed = asyncio.Event()
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.piece_bytes = _PIECE_BYTES
        self.stalled: frozenset[Way] = frozenset()
        self.refusing = False
        self.connections = 0
        self.resets = 0
        self.forwarded_bytes = 0

    @property
    def address(self) -> str:
        """`HOST:PORT`, for `wai node run --relay`."""
        return f"{self._host}:{self.port}"

    @property
    def url(self) -> str:
        """`http://HOST:PORT`, for `wai node run --upstream`."""
        return f"http://{self.address}"

    # -- what ends connections

    def reset(self) -> None:
        """Reset every connection now, at whatever byte it is, as a restarted router does."""
        self._do(self.reset_here)

    def reset_one(self) -> None:
        """Reset the oldest connection now, and no other."""

        def reset() -> None:
            link = self._links.pop(0)
            self.resets += 1
            link.reset()

        self._do(reset)

    @property
    def bytes_by_connection(self) -> list[int]:
        """What has passed on each connection that is open, the oldest first."""
        return [link.forwarded_bytes for link in self._links]

    def reset_after(self, forwarded: int) -> None:
        """Reset every connection once `forwarded` more bytes, of either direction, have passed."""
        self._reset_at = self.forwarded_bytes + forwarded

    @property
    def reset_is_due(self) -> bool:
        """Whether a reset was asked for by `reset_after` that has not happened yet."""
        return self._reset_at is not None

    def cut(self) -> None:
        """Close every connection in an orderly way (FIN), in the middle of what flows."""
        self._do(lambda: self._end_all(_Link.close))

    def abandon(self, ways: frozenset[Way] = BOTH_WAYS) -> None:
        """Pass nothing more on the existing connections in those directions, not even their end, as
        a middlebox that has forgotten them. New connections work."""

        def forget() -> None:
            for link in self._links:
                link.abandoned |= ways

        self._do(forget)

    def stop_listening(self) -> None:
        """Reset every connection; new ones are refused, as where no program has the port."""

        async def stop() -> None:
            await stop_listening(self._server)
            self.reset_here()

        self._run(stop())

    def listen_again(self) -> None:
        """Listen again, on the same port, after `stop_listening`. Without effect if it listens."""
        if not self._server.is_serving():
            listener = socket.create_server((self._host, self.port))
            self._run(self._listen(listener))

    # -- what makes them bad, old and new ones, until `clear`

    def stall(self, ways: frozenset[Way] = BOTH_WAYS) -> None:
        """Pass nothing in those directions, and keep the connections open."""
        self._set(stalled=ways)

    def delay(self, seconds: float) -> None:
        """Delay every byte by so many seconds, in each direction."""
        self._set(delay_s=seconds)

    def limit_rate(self, bytes_per_s: float) -> None:
        """Limit the rate of each connection and direction."""
        self._set(bytes_per_s=bytes_per_s)

    def split(self, piece_bytes: int) -> None:
        """Forward everything in pieces of this size, each in its own packet."""
        self._set(piece_bytes=piece_bytes)

    def refuse(self) -> None:
        """Reset every connection now, and each new one at once."""
        self._set(refusing=True)
        self.reset()

    def clear(self) -> None:
        """End all faults; abandoned connections stay abandoned."""
        self._set(
            stalled=frozenset(),
            delay_s=0.0,
            bytes_per_s=0.0,
            piece_bytes=_PIECE_BYTES,
            refusing=False,
        )

    # -- for the links, on the loop

    def count(self, size: int) -> int:
        """Return how many of `size` bytes may pass before a pending reset."""
        due, self.forwarded_bytes = self._reset_at, self.forwarded_bytes + size
        return size if due is None else max(0, min(size, due - self.forwarded_bytes + size))

    def reset_here(self) -> None:
        """Reset every connection; called on the loop."""
        self._reset_at = None
        self.resets += bool(self._links)
        self._end_all(_Link.reset)

    def _end_all(self, end: Callable[[_Link], None]) -> None:
        links, self._links = self._links, []
        for link in links:
            end(link)

    def forget(self, link: _Link) -> None:
        """Forget a link that has ended by itself."""
        if link in self._links:
            self._links.remove(link)

    # -- running

    def run(self) -> None:
        """The thread's body: accept until `stop`."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def stop(self) -> None:
        """Stop listening and reset what is open."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        await self._listen(self._listener)
        self.started.set()
        await self._stop.wait()
        self.reset_here()
        for transport in list(self._transports):
            transport.abort()  # one that was closed waits for a peer that may have gone
        await end_connections(self._server)

    async def _listen(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._accept, sock=listener)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.add(writer.transport)
        task = self._loop.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _reset(writer)
            return
        try:
            far = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._transports.add(far[1].transport)
        except (ConnectionError, asyncio.CancelledError):
            _reset(writer)
            return
        if not self._server.is_serving():  # it was accepted just before `stop_listening`
            _reset(writer)
            _reset(far[1])
            return
        link = _Link(self, (reader, writer), far)
        self._links.append(link)
        self.connections += 1
        await link.run()

    def _set(self, **weather: object) -> None:
        def change() -> None:
            for name, value in weather.items():
                setattr(self, name, value)
            self.changed.set()
            self.changed = asyncio.Event()

        self._do(change)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have `work` run on the loop, and wait for its end."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _do(self, act: Callable[[], None]) -> None:
        """Have `act` done on the loop, and wait for it."""
        done = threading.Event()

        def do() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(do)
        done.wait()


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One forwarded connection."""

    def __init__(self, proxy: FaultProxy, dialler: _End, target: _End) -> None:
        self._proxy = proxy
        self._dialler = dialler
        self._target = target
        self._over = asyncio.Event()
        self._ended = 0
        self.forwarded_bytes = 0
        self.abandoned: frozenset[Way] = frozenset()
        for _, writer in (dialler, target):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self) -> None:
        """Carry both ways until both are over, or somebody ended it."""
        both = asyncio.gather(
            self._carry(self._dialler[0], self._target[1], Way.TO_TARGET),
            self._carry(self._target[0], self._dialler[1], Way.TO_DIALLER),
        )
        over = asyncio.ensure_future(self._over.wait())
        try:
            try:
                await asyncio.wait((both, over), return_when=asyncio.FIRST_COMPLETED)
            finally:
                both.cancel()
                over.cancel()
                await asyncio.gather(both, over, return_exceptions=True)
                self._proxy.forget(self)
            self.close()
            for _, writer in (self._dialler, self._target):
                with suppress(OSError):
                    await writer.wait_closed()
        finally:  # what one that does not read has left over is dropped with the proxy
            for _, writer in (self._dialler, self._target):
                writer.transport.abort()

    def reset(self) -> None:
        """End it by RST."""
        for _, writer in (self._dialler, self._target):
            _reset(writer)
        self._over.set()

    def close(self) -> None:
        """End it by FIN."""
        for _, writer in (self._dialler, self._target):
            writer.close()
        self._over.set()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        line: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_PIECES_UNDER_WAY)
        collecting = asyncio.ensure_future(self._collect(reader, line))
        try:
            await self._deliver(line, writer, way)
        finally:
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)

    async def _collect(
        self, reader: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes | None]]
    ) -> None:
        loop = asyncio.get_running_loop()
        data: bytes | None
        while True:
            try:
                data = await reader.read(_PIECE_BYTES)
            except ConnectionError:
                data = None
            await line.put((loop.time(), data))
            if not data:
                break
        self._ended += 1
        if self._ended == 2:
            await asyncio.sleep(0)
            if self.abandoned:
                self._over.set()  # both ends are gone, and neither will ever hear of it

    async def _deliver(
        self,
        line: asyncio.Queue[tuple[float, bytes | None]],
        writer: asyncio.StreamWriter,
        way: Way,
    ) -> None:
        while True:
            came_at, data = await line.get()
            await self._held(way, came_at)
            if not data:
                break
            for piece in _pieces(data, self._proxy.piece_bytes):
                await self._held(way, came_at)
                kept = self._proxy.count(len(piece))
                try:
                    self.forwarded_bytes += kept
                    writer.write(piece[:kept])
                    await writer.drain()
                except ConnectionError:
                    return  # its reader has noticed as well, and tells the other end
                if kept < len(piece):
                    self._proxy.reset_here()
                    return
                if rate := self._proxy.bytes_per_s:
                    await asyncio.sleep(len(piece) / rate)
                elif self._proxy.piece_bytes < _PIECE_BYTES:
                    await asyncio.sleep(0)  # else the kernel joins them again
        if data is None:
            self.reset()
        else:
            with suppress(OSError):
                writer.write_eof()

    async def _held(self, way: Way, came_at: float) -> None:
        """Wait until data that arrived at `came_at` may be forwarded."""
        proxy, loop = self._proxy, asyncio.get_running_loop()
        while True:
            changed = proxy.changed
            if way in self.abandoned:
                await asyncio.Event().wait()  # until it is cancelled: nothing comes any more
            elif way in proxy.stalled:
                await changed.wait()
            elif (early_s := came_at + proxy.delay_s - loop.time()) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(early_s):
                        await changed.wait()
            else:
                return


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


@contextmanager
def fault_proxy(target_port: int, host: str = "127.0.0.1") -> Iterator[FaultProxy]:
    """A running proxy to `127.0.0.1:target_port`."""
    proxy = FaultProxy(target_port, host)
    thread = threading.Thread(target=proxy.run)
    thread.start()
    proxy.started.wait()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()
