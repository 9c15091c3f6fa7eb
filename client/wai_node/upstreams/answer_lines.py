"""The lines of one answer as they come, with bounds: for an API that tells its progress so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from wai_protocol.errors import Fault, TransportError, WaiError
from wai_protocol.surface import Headers
from wai_transport.http_request import ClientRequest

MAX_LINE_BYTES: Final = 64 * 1024  # a line of progress has some 150 bytes
BUFFER_BYTES: Final = 256 * 1024  # then the socket is not read until lines were taken


class Cut(TransportError):
    """The answer did not come, or broke off."""


class AnswerLines:
    """A `ResponseSink`. Set `request`, wait for `head`, then iterate; `rest` is for errors."""

    def __init__(self) -> None:
        self.status = 0
        self.request: ClientRequest | None = None
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._ended = False
        self._error: WaiError | None = None
        self._changed = asyncio.Event()

    # -- ResponseSink

    def on_headers(self, status: int, headers: Headers) -> None:
        """Take the answer's head."""
        del headers
        self.status = status
        self._changed.set()

    def on_data(self, data: bytes) -> None:
        """Keep a piece; stop reading the socket while much is kept."""
        self._pieces.append(data)
        self._buffered += len(data)
        if self._buffered >= BUFFER_BYTES and self.request is not None:
            self.request.pause_reading()
        self._changed.set()

    def on_end(self) -> None:
        """Note that the answer is complete."""
        self._ended = True
        self._changed.set()

    def on_error(self, error: WaiError) -> None:
        """Note an error, which is raised after what came before it."""
        self._error = error
        self._changed.set()

    # -- for the reader

    async def head(self) -> int:
        """Wait for the status. Raises `Cut`."""
        while not self.status:
            await self._wait()
        return self.status

    async def rest(self) -> bytes:
        """The beginning of what follows, up to the length of a line."""
        found = b""
        while len(found) < MAX_LINE_BYTES and (data := await self._read()):
            found += data
        return found[:MAX_LINE_BYTES]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Every line that is not empty. Raises `Cut`; `TransportError` for one without an end."""
        rest = b""
        while data := await self._read():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line
            if len(rest) > MAX_LINE_BYTES:
                raise TransportError("a line of the answer has no end", Fault.UPSTREAM_BROKE)
        if rest.strip():
            yield rest

    async def _read(self) -> bytes:
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
            raise Cut(str(self._error), self._error.fault) from self._error
        self._changed.clear()
        await self._changed.wait()
