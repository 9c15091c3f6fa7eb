"""Sends a request again through the gateway, for an admin who compares nodes or models.

It goes the way of any request, with a key that is lent for it: it takes a slot, is in the list of
running requests, and counts for nobody's usage. The answer is collected, up to a bound.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from wai_protocol.surface import Headers
from wai_relay.http.exchange import Exchange, Request

MAX_ANSWER_BYTES: Final = 1024 * 1024  # as much as is captured of an answer
REPLAY_S: Final = 3600.0  # how long the key is good: longer than any answer takes


class Replayed(msgspec.Struct):
    """What came back. `cut`: there was more."""

    request_id: str
    status: int
    answer: bytes
    cut: bool


class _CollectedExchange(Exchange):
    """An exchange whose request is in memory, and whose response is collected."""

    def __init__(self, request: Request, body: bytes) -> None:
        self.request = request
        self.status = 0
        self.answer = bytearray()
        self.cut = False
        self._body = body
        self._bytes_in = self._bytes_out = 0

    async def read(self) -> bytes:
        """See `Exchange`."""
        data, self._body = self._body, b""
        self._bytes_in += len(data)
        return data

    def start(self, status: int, headers: Headers) -> None:
        """See `Exchange`."""
        self.status = status

    def write(self, data: bytes) -> None:
        """See `Exchange`."""
        self._bytes_out += len(data)
        room = MAX_ANSWER_BYTES - len(self.answer)
        self.answer += data[:room]
        self.cut = self.cut or len(data) > room

    def end(self) -> None:
        """See `Exchange`."""

    def abort(self) -> None:
        """See `Exchange`."""
        self.cut = True

    @property
    def started(self) -> bool:
        """See `Exchange`."""
        return self.status != 0

    @property
    def paused(self) -> bool:
        """See `Exchange`."""
        return False

    @property
    def bytes_in(self) -> int:
        """See `Exchange`."""
        return self._bytes_in

    @property
    def bytes_out(self) -> int:
        """See `Exchange`."""
        return self._bytes_out


class Lender(Protocol):
    """Who lends keys (`access.keys.KeyRing`)."""

    def lend(self, seconds: float) -> str:
        """Return the secret of a key that is good for so long. Raises `RequestError`."""

    def take_back(self, secret: str) -> None:
        """The key is not needed any more."""


class Replays:
    """Sends requests again. `handle` is the gateway's."""

    def __init__(self, handle: Callable[[Exchange], Awaitable[None]], keys: Lender) -> None:
        self._handle = handle
        self._keys = keys

    async def send(self, path: str, body: bytes, *, node: str | None) -> Replayed:
        """Send `body` to `path` again, to `node` if one is named. Raises `WaiError` where too many
        keys are lent; what the gateway refuses is an answer."""
        secret = self._keys.lend(REPLAY_S)
        try:
            return await self._send(secret, path, body, node)
        finally:
            self._keys.take_back(secret)

    async def _send(self, secret: str, path: str, body: bytes, node: str | None) -> Replayed:
        headers: Headers = [
            (b"authorization", b"Bearer " + secret.encode()),
            (b"content-type", b"application/json"),
            (b"x-wai-heartbeat", b"0"),
        ]
        if node is not None:
            headers.append((b"x-wai-node", node.encode("utf-8")))
        request = Request(
            method="POST",
            path=path,
            query="",
            headers=headers,
            http_version="1.1",
            scheme="https",
            authority="relay",
            peer="",
            request_id=f"req_{secrets.token_urlsafe(18)}",
            content_length=len(body),
        )
        exchange = _CollectedExchange(request, body)
        await self._handle(exchange)
        return Replayed(request.request_id, exchange.status, bytes(exchange.answer), exchange.cut)
