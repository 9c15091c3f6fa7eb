"""Leaving a relay on purpose: GOAWAY and the connection's end, so that no session waits for us.

For who joins: it only wanted to be let in. A node at work drains and leaves by its sessions.
"""

from __future__ import annotations

import asyncio
from typing import Final

from wai_protocol.errors import Fault
from wai_protocol.session import Role, Session

from .dial import Connected

GOODBYE_S: Final = 2.0
"""A round trip, or a relay that hangs: then it finds out by itself that we are gone."""


class _Leaving(asyncio.Protocol):
    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


async def say_goodbye(connected: Connected, reason: str) -> None:
    """End a connection whose handshake is done and which carried nothing."""
    session = Session(Role.NODE, peer=connected.welcome.limits)
    session.attach(connected.welcome.received, asyncio.get_running_loop().time())
    session.go_away(Fault.DRAINING, reason)
    transport, leaving = connected.transport, _Leaving()
    transport.set_protocol(leaving)
    transport.resume_reading()
    transport.write(session.bytes_to_send())
    transport.close()
    try:
        async with asyncio.timeout(GOODBYE_S):
            await leaving.gone.wait()
    except TimeoutError:
        transport.abort()
