"""End a connection on purpose: send GOAWAY and close, so that the relay keeps no session for it.

Used by `wai node join`, which needs the handshake alone. A running node drains its sessions
instead.
"""

from __future__ import annotations

import asyncio
from typing import Final

from wai_protocol.errors import Fault
from wai_protocol.session import Role, Session

from .dial import Connected

GOODBYE_S: Final = 2.0
"""Limit for the relay's answer, one round trip. If it hangs, it will notice the loss by itself."""


class _Leaving(asyncio.Protocol):
    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


async def say_goodbye(connected: Connected, reason: str) -> None:
    """Send GOAWAY with `reason` on a connection that has no streams, and close it."""
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
