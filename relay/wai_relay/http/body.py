"""Queue a request's body between the connection that receives it and the handler that reads it.

The connection bounds the size of the queue: depending on `waiting_bytes` it stops reading
(HTTP/1.1) or grants no window (HTTP/2). The framing is removed before bytes come here.
"""

from __future__ import annotations

import asyncio
from typing import Final

from wai_protocol.errors import LocalProtocolError, RequestError

# Pieces are joined when this many wait, because each costs 40 bytes of overhead, which matters for
# a body that arrives byte by byte. Joining 64 at a time costs less than the reads of the socket
# did.
MAX_PIECES: Final = 64


class RequestBody:
    """The queue of one body's pieces. Only one reader may wait at a time."""

    __slots__ = ("_error", "_pieces", "_waiter", "complete", "read_bytes", "waiting_bytes")

    def __init__(self) -> None:
        self.complete = False
        self.waiting_bytes = 0
        self.read_bytes = 0
        self._pieces: list[bytes] = []
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the framing was invalid or the caller stalled, so that no more will arrive."""
        return self._error is not None

    def feed(self, data: bytes) -> None:
        """Add the next piece."""
        self._pieces.append(data)
        self.waiting_bytes += len(data)
        if len(self._pieces) >= MAX_PIECES:
            self._pieces = [b"".join(self._pieces)]
        self._wake()

    def finish(self) -> None:
        """Mark the body as complete."""
        self.complete = True
        self._wake()

    def fail(self, error: RequestError) -> None:
        """Mark the body as broken: `read` raises `error` after the pieces that arrived before."""
        if self._error is None and not self.complete:
            self._error = error
            self._wake()

    def discard(self) -> int:
        """Drop the waiting pieces; return their size in bytes."""
        dropped = self.waiting_bytes
        self._pieces.clear()
        self.waiting_bytes = 0
        return dropped

    async def read(self) -> bytes:
        """Return the next piece, b"" at the end. Raises the error passed to `fail`."""
        while not self._pieces:
            if self.complete:
                return b""
            if self._error is not None:
                raise self._error
            if self._waiter is not None:
                raise LocalProtocolError("two readers wait for one request body")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self.waiting_bytes = 0
        self.read_bytes += len(data)
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
