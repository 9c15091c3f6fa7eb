"""Connect through the HTTP proxy that the environment names, if any.

`HTTPS_PROXY` and `NO_PROXY` have the same meaning for commands as for nodes and relays: the rules
and the CONNECT exchange are in `wai_transport.http_proxy`, the settings in `options.proxy`. This
module does the I/O.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Final

from wai_cli.options.proxy import proxy_settings
from wai_protocol.errors import TransportError
from wai_transport.http_proxy import Proxy, ask_to_connect, proxy_for
from wai_transport.origin import Origin

from .connecting import connect

_READ_BYTES: Final = 4096
"""More than most answers to CONNECT have. Nothing follows the answer before TLS starts."""


def proxy_to(url: str) -> Proxy | None:
    """Return the proxy to use for the relay at `url`; None: connect directly.

    Raises `RequestError` if the setting is invalid.
    """
    origin, _ = Origin.parse(url)
    said = proxy_settings()
    return proxy_for(origin, said.get("https_proxy"), said.get("no_proxy", ""))


class ProxiedConnection(http.client.HTTPSConnection):
    """An HTTPS connection through a proxy.

    `connect` raises `TransportError` if the proxy refuses or can't be reached, and `OSError` if TLS
    with the relay fails.
    """

    def __init__(
        self, proxy: Proxy, host: str, port: int | None, timeout_s: float, context: ssl.SSLContext
    ) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._proxy = proxy
        self._timeout_s = timeout_s
        self._tls = context

    def connect(self) -> None:
        """Connect through the proxy, and start TLS with the relay."""
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
        """Perform the CONNECT exchange. `ask_to_connect` is a coroutine, but its reads block here,
        so that a single step completes it without an event loop."""

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
