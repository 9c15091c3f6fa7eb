"""What a kind of receiver is: it delivers one message, or says why it could not."""

from __future__ import annotations

from typing import Final, Protocol

from .message import Message

DELIVER_S: Final = 30.0
"""For all of one delivery. A mail server may make a stranger wait for some seconds on purpose."""


class Receiver(Protocol):
    """One that is told. `name`: its kind and its server; it holds no secret."""

    name: str

    async def deliver(self, message: Message) -> None:
        """Deliver within `DELIVER_S`. Raises `WaiError`, whose text holds no secret."""

    async def aclose(self) -> None:
        """End what it has open."""
