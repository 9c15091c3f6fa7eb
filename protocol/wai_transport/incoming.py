"""The one buffer that a process reads its TLS connections into."""

from __future__ import annotations

import asyncio
from typing import Final

INCOMING_BYTES: Final = 256 * 1024
"""What is read of a connection at a time: as much as uvloop's TLS takes from its socket."""

INCOMING: Final = memoryview(bytearray(INCOMING_BYTES))
"""Where a process's connections are read into, all of them: what was read is taken before the next
read, in the same call of the loop's."""


class ReadIntoOne(asyncio.BufferedProtocol):
    """A protocol that is read into `INCOMING`; it gets `INCOMING[:nbytes]` to take at once.

    Without that, each read under TLS first makes an object of 256 KiB and then cuts it down, and
    what comes in several TLS records is copied once more. For one loop a process.
    """

    __slots__ = ()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return INCOMING
