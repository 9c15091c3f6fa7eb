"""A request's body between the connection that receives it and the handler that reads it.

Pieces wait here until they are read; how much may wait is the connection's business (it stops
reading, or grants no window, by `waiting_bytes`). No framing is read here.
"""

from __future__ import annotations

import asyncio
from typing import Final

from wai_protocol.errors import LocalProtocolError, RequestError

# A body that comes byte by byte would cost 40 bytes of list and object for each: pieces are joined
# when this many wait. Joining 64 at a time keeps the copying below what the socket reads cost.
MAX_PIECES: Final = 64


class RequestBody:
    """The pieces of one body, in order. One reader at a time."""

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
        """Whether its framing broke or its caller stalled: nothing more will come."""
        return self._error is not None

    def feed(self, data: bytes) -> None:
        """The next piece arrived."""
        self._pieces.append(data)
        self.waiting_bytes += len(data)
        if len(self._pieces) >= MAX_PIECES:
            self._pieces = [b"".join(self._pieces)]
        self._wake()

    def finish(self) -> None:
        """The body is complete."""
        self.complete = True
        self._wake()

    def fail(self, error: RequestError) -> None:
        """It will never be complete: readers get `error` once what arrived before it is read."""
        if self._error is None and not self.complete:
            self._error = error
            self._wake()

    def discard(self) -> int:
        """Drop what waits; returns how many bytes that was."""
        dropped = self.waiting_bytes
        self._pieces.clear()
        self.waiting_bytes = 0
        return dropped

    async def read(self) -> bytes:
        """The next piece, b"" at the end. Raises the error given to `fail`."""
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
