"""Connect to a server through an HTTP proxy, with TLS to the server inside."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from wai_protocol.errors import TransportError

from .address_race import Address
from .connecting import Prepare, SilentPeer, create_connection
from .http_proxy import Proxy, ask_to_connect
from .origin import Origin

_P = TypeVar("_P", bound=asyncio.BaseProtocol)


async def create_connection_through(
    proxy: Proxy,
    origin: Origin,
    factory: Callable[[], _P],
    tls: ssl.SSLContext,
    *,
    limit_s: float,
    tls_limit_s: float,
    prepare: Prepare | None = None,
    redial_s: float | None = None,
    known: Sequence[Address] = (),
) -> tuple[asyncio.Transport, _P]:
    """Connect to `proxy`, send it CONNECT for `origin`, start TLS, and make a protocol.

    `limit_s` bounds the connection to the proxy, and again its answer; `tls_limit_s` bounds TLS.
    The other arguments are those of `connecting.create_connection`. Raises what it raises, and
    `TransportError` or `RemoteProtocolError` as `ask_to_connect` does.
    """
    loop = asyncio.get_running_loop()
    plain, answering = await create_connection(
        _Answering,
        proxy.host,
        proxy.port,
        limit_s=limit_s,
        prepare=prepare,
        redial_s=redial_s,
        known=known,
    )
    try:
        await _have_it_connect(proxy, origin, plain, answering, limit_s)
        protocol = factory()
        async with asyncio.timeout(tls_limit_s):
            secured = await loop.start_tls(
                plain, cast(asyncio.Protocol, protocol), tls, server_hostname=origin.host
            )
        if secured is None:
            raise TransportError(f"the proxy {proxy} closed the connection")
    except TimeoutError:
        plain.abort()
        raise SilentPeer from None
    except BaseException:
        plain.abort()
        raise
    protocol.connection_made(secured)
    return secured, protocol


async def _have_it_connect(
    proxy: Proxy, origin: Origin, plain: asyncio.Transport, answering: _Answering, limit_s: float
) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await ask_to_connect(proxy, origin, plain.write, answering.read)
    except TimeoutError:
        raise TransportError(
            f"no connection to {origin.host}:{origin.port} through the proxy {proxy} within"
            f" {limit_s:g} s: it does not answer"
        ) from None


class _Answering(asyncio.Protocol):
    """Buffers a proxy's answer until it is read."""

    def __init__(self) -> None:
        self._buffer = b""
        self._changed = asyncio.Event()
        self._lost = False

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._changed.set()

    async def read(self) -> bytes:
        """Wait for bytes and return them. Raises `TransportError` when the connection ends."""
        while not self._buffer:
            if self._lost:
                raise TransportError("the connection ended")
            self._changed.clear()
            await self._changed.wait()
        data, self._buffer = self._buffer, b""
        return data
