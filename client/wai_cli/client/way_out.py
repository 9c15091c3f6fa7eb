"""The way out of this machine, as its environment says: directly, or through an HTTP proxy.

`HTTPS_PROXY` and `NO_PROXY` mean for every command what they mean for a node:
`wai_node.tunnel.proxy` has the rules and the words of the exchange, this module reads the
environment and moves the bytes.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from typing import Final

from wai_node.tunnel.proxy import Proxy, ask_to_connect, proxy_for
from wai_protocol.errors import TransportError
from wai_transport.origin import Origin

from .connecting import connect

_READ_BYTES: Final = 4096
"""More than a proxy's answer to CONNECT has; and before TLS begins nothing can follow it."""


def proxy_settings() -> dict[str, str]:
    """What the environment says of a proxy, as other programs read it: either case is usual."""
    found = {}
    for name in ("https_proxy", "no_proxy"):
        if value := os.environ.get(name) or os.environ.get(name.upper()):
            found[name] = value
    return found


def proxy_to(url: str) -> Proxy | None:
    """The proxy to reach the relay at `url` by; None: directly. Raises `RequestError`."""
    origin, _ = Origin.parse(url)
    said = proxy_settings()
    return proxy_for(origin, said.get("https_proxy"), said.get("no_proxy", ""))


class ProxiedConnection(http.client.HTTPSConnection):
    """HTTPS on a connection that a proxy makes. `connect` raises `TransportError` where the proxy
    refuses or can't be reached, `OSError` where TLS with the relay fails."""

    def __init__(
        self, proxy: Proxy, host: str, port: int | None, timeout_s: float, context: ssl.SSLContext
    ) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._tls = context

    def connect(self) -> None:
        """Have the proxy connect us, and begin TLS with the relay."""
        try:
            plain = connect(self._proxy.host, self._proxy.port, self._timeout_s)
        except OSError as error:
            reason = error.strerror or error
            raise TransportError(
                f"the proxy {self._proxy}, which HTTPS_PROXY names, can't be reached: {reason}"
            ) from error
        try:
            self._ask(plain)
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def _ask(self, plain: socket.socket) -> None:
        """The exchange with the proxy. Its reads don't wait for a loop: one step is all of it."""

        async def read() -> bytes:
            data = plain.recv(_READ_BYTES)
            if not data:
                raise TransportError("the connection ended")
            return data

        origin = Origin("https", self.host, self.port)
        asking = ask_to_connect(self._proxy, origin, plain.sendall, read)
        try:
            asking.send(None)
        except StopIteration:
            return
