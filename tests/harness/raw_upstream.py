"""A fake upstream whose bytes a test scripts.

A script is an async function `(reader, writer)`. Each connection runs the next one, and the last
one is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawUpstream:
    """A listening socket on 127.0.0.1 with its scripts."""

    def __init__(self, scripts: tuple[Script, ...]) -> None:
        self._scripts = scripts
        self.connections = 0
        self.closed = 0
        self.url = ""
        self.tasks: set[asyncio.Task[None]] = set()
        self.client_came = asyncio.Event()
        self.client_left = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        self.client_came.set()
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left in the middle: what many tests are about
        except asyncio.CancelledError:
            pass  # the test is over; asyncio's stream server logs a cancelled callback as an error
        finally:
            self.closed += 1
            self.client_left.set()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self.tasks.discard(task)


@asynccontextmanager
async def raw_upstream(*scripts: Script) -> AsyncIterator[RawUpstream]:
    """Serve `scripts`; all connections are ended at the end."""
    upstream = RawUpstream(scripts)
    server = await asyncio.start_server(upstream.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream.url = f"http://127.0.0.1:{port}"
    try:
        yield upstream
    finally:
        server.close()
        for task in list(upstream.tasks):
            task.cancel()
        await asyncio.gather(*upstream.tasks, return_exceptions=True)
        await server.wait_closed()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """A request's head, raw."""
    return await reader.readuntil(b"\r\n\r\n")


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A request's head, raw, and its body, out of its framing."""
    head = await read_head(reader)
    lines = head.lower().split(b"\r\n")
    if b"transfer-encoding: chunked" in lines:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return head, body
    lengths = [line for line in lines if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    return head, await reader.readexactly(length)


def answering(*pieces: bytes, close: bool = False, seen: list[bytes] | None = None) -> Script:
    """Read a request, send `pieces`; again and again, or `close` after the first."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            if seen is not None:
                seen.append(head + body)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if close:
                return

    return script


def ok(body: bytes, *headers: bytes) -> bytes:
    """A whole 200 answer with Content-Length."""
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
