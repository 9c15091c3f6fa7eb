"""One answer's body for a task that reads it at its own pace: the socket waits for the reader."""

from __future__ import annotations

import asyncio
from collections import deque

from wai_protocol.errors import TransportError, WaiError
from wai_protocol.surface import Headers

from .http_request import ClientRequest


class AnswerPieces:
    """A `ResponseSink`. Set `request`, wait for `head`, then `read`. The socket is not read while
    `buffer_bytes` are kept. An answer that does not come, or breaks off, raises a `broken`, after
    what came before."""

    def __init__(self, buffer_bytes: int, broken: type[TransportError]) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.request: ClientRequest | None = None
        self._buffer_bytes = buffer_bytes
        self._broken = broken
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._ended = False
        self._error: WaiError | None = None
        self._changed = asyncio.Event()

    # -- ResponseSink

    def on_headers(self, status: int, headers: Headers) -> None:
        """Take the answer's head."""
        self.status = status
        self.headers = dict(headers)
        self._changed.set()

    def on_data(self, data: bytes) -> None:
        """Keep a piece; stop reading the socket while much is kept."""
        self._pieces.append(data)
        self._buffered += len(data)
        if self._buffered >= self._buffer_bytes and self.request is not None:
            self.request.pause_reading()
        self._changed.set()

    def on_end(self) -> None:
        """Note that the body is complete."""
        self._ended = True
        self._changed.set()

    def on_error(self, error: WaiError) -> None:
        """Note an error, which `read` raises once it has returned what came before."""
        self._error = error
        self._changed.set()

    # -- for the reader

    async def head(self) -> int:
        """Wait for the answer's head, and return its status. Raises `broken`."""
        while not self.status:
            await self._wait()
        return self.status

    async def read(self) -> bytes:
        """Return the bytes since the last call, b"" at the end. Raises `broken`."""
        while not self._pieces:
            if self._ended:
                return b""
            await self._wait()
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        if self.request is not None and self.request.reading_paused and not self.request.over:
            self.request.resume_reading()
        return data

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._broken(str(self._error), self._error.fault) from self._error
        self._changed.clear()
        await self._changed.wait()
