"""The lines of one answer as they come, with bounds: for an API that tells its progress so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from wai_protocol.errors import Fault, TransportError
from wai_transport.answer_pieces import AnswerPieces

MAX_LINE_BYTES: Final = 64 * 1024  # a line of progress has some 150 bytes
BUFFER_BYTES: Final = 256 * 1024  # then the socket is not read until lines were taken


class Cut(TransportError):
    """The answer did not come, or broke off."""


class AnswerLines(AnswerPieces):
    """The answer by lines: iterate after `head`; `rest` is for errors. Raises `Cut`."""

    def __init__(self) -> None:
        super().__init__(BUFFER_BYTES, Cut)

    async def rest(self) -> bytes:
        """The beginning of what follows, up to the length of a line."""
        found = b""
        while len(found) < MAX_LINE_BYTES and (data := await self.read()):
            found += data
        return found[:MAX_LINE_BYTES]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Every line that is not empty. Raises `Cut`; `TransportError` for one without an end."""
        rest = b""
        while data := await self.read():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line
            if len(rest) > MAX_LINE_BYTES:
                raise TransportError("a line of the answer has no end", Fault.UPSTREAM_BROKE)
        if rest.strip():
            yield rest
