"""One buffer, shared by all connections of a process, that incoming bytes are read into."""

from __future__ import annotations

import asyncio
from typing import Final

READ_BUFFER_BYTES: Final = 256 * 1024
"""Maximum size of one read: as much as uvloop's TLS reads from its socket at once."""

READ_BUFFER: Final = memoryview(bytearray(READ_BUFFER_BYTES))
"""The buffer of all connections. The event loop passes each read to `buffer_updated` at once, so
the bytes are processed or copied before the next read."""


class SharedBufferProtocol(asyncio.BufferedProtocol):
    """A protocol whose transport reads into `READ_BUFFER`.

    `buffer_updated(nbytes)` must process or copy `READ_BUFFER[:nbytes]` before it returns. With an
    ordinary `asyncio.Protocol`, each read under TLS first makes an object of 256 KiB and then a
    smaller copy, and data of several TLS records is copied once more. A process must use only one
    event loop with it.
    """

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return READ_BUFFER
