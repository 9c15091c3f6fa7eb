"""Serve a challenge while the authority validates the relay's name.

There are two ways: on the relay's own port (TLS-ALPN-01), or with a temporary web server (HTTP-01,
for a relay whose port 443 the authority cannot reach). The content comes from `challenge`.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from wai_protocol.errors import TransportError
from wai_relay.http.edge import Edge
from wai_relay.http.exchange import Exchange
from wai_relay.http.listener import Listener
from wai_relay.http.served_certificate import ServedCertificate
from wai_transport.folder import DataFolder

from .challenge import HTTP_PATH, tls_alpn_certificate

CHALLENGE_FILE: Final = "acme-challenge.pem"  # Python's ssl loads certificates from files only


class Proof(Protocol):
    """A way to serve a challenge. `kind` is the challenge's type."""

    kind: str

    def shown(self, name: str, token: str, authorization: str) -> AbstractAsyncContextManager[None]:
        """Return a context manager that serves the challenge for `name` within its block.

        `token`: the challenge's token; `authorization`: its key authorization.
        """


class TlsAlpnProof:
    """Serves TLS-ALPN-01 on the port of `served`."""

    kind = "tls-alpn-01"

    def __init__(self, served: ServedCertificate, folder: DataFolder) -> None:
        self._served = served
        self._folder = folder

    @asynccontextmanager
    async def shown(self, name: str, token: str, authorization: str) -> AsyncIterator[None]:
        """See `Proof`."""
        now = datetime.datetime.now(datetime.UTC)
        self._folder.write(CHALLENGE_FILE, tls_alpn_certificate(name, authorization, now))
        try:
            with self._served.challenge(name, self._folder.path / CHALLENGE_FILE):
                yield
        finally:
            self._folder.remove(CHALLENGE_FILE)


class HttpProof:
    """Serves HTTP-01 on a port of its own, to which port 80 must be forwarded."""

    kind = "http-01"

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)

    @asynccontextmanager
    async def shown(self, name: str, token: str, authorization: str) -> AsyncIterator[None]:
        """See `Proof`. Raises `TransportError` if the port cannot be bound."""
        host, port = self._address

        async def answer(exchange: Exchange) -> None:
            found = exchange.request.path == HTTP_PATH + token
            body = authorization.encode() if found else b"not found\n"
            length = (b"content-length", b"%d" % len(body))
            exchange.start(200 if found else 404, [(b"content-type", b"text/plain"), length])
            if exchange.request.method != "HEAD":
                exchange.write(body)
            exchange.end()

        edge = Edge(answer)
        listener = Listener(edge)
        try:
            await listener.open(host=host, port=port, tls=None)
        except OSError as error:
            raise TransportError(
                f"can't listen on {host}:{port} for the authority's validation: {error.strerror}"
            ) from error
        try:
            yield
        finally:
            await listener.close()
            await edge.drain(0.0)
