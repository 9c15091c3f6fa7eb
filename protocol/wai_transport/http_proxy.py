"""HTTP proxies for outgoing connections: choose one for a server, and send it CONNECT.

Parses the values of `HTTPS_PROXY` and `NO_PROXY` (the CLI reads them from the environment), and
performs the CONNECT exchange (RFC 9110 section 9.3.6) on a connection that somebody else has opened
(`proxied`). Old proxies answer in odd ways (lines that end with LF, folded fields, 1xx before the
answer), so h11 reads the answer. The proxy sees the server's name and then TLS: it learns no more
than any network on the path.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from wai_protocol.errors import RemoteProtocolError, RequestError, TransportError

from .origin import Origin

if TYPE_CHECKING:
    import h11

MAX_ANSWER_BYTES: Final = 16 * 1024
"""Limit for the head of the answer to CONNECT; a 407 of a Windows domain's proxy has some 1 KiB."""

_SHOWN_CHARS: Final = 120
"""How much of the proxy's answer our message quotes."""

_WANTS_CREDENTIALS: Final = 407
_REFUSED: Final = re.compile(rb"HTTP/1\.[01] (?P<said>(?P<status>[45]\d\d)(?: [^\r\n]*)?)\r?\n")

_WRONG: Final = "HTTPS_PROXY is http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `credentials` is the value of Proxy-Authorization; None if it needs none."""

    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Parse a value of `HTTPS_PROXY`; its scheme may be missing. Raises `RequestError`."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise RequestError(_WRONG) from None  # not quoted: it may hold a password
        if parts.scheme != "http":
            raise RequestError(f"{_WRONG}; a proxy of another kind ({parts.scheme}) can't be used")
        if not host or not host.isascii() or any(c <= " " for c in host):
            raise RequestError(_WRONG)
        credentials = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            credentials = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(host, port or 80, credentials)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Which connections go through a proxy: the values of `HTTPS_PROXY` and `NO_PROXY`."""

    https_proxy: str | None = field(default=None, repr=False)
    no_proxy: str = ""

    def to(self, origin: Origin) -> Proxy | None:
        """Return the proxy to use for `origin`; see `proxy_for`. Raises `RequestError`."""
        return proxy_for(origin, self.https_proxy, self.no_proxy)

    def url_to(self, origin: Origin) -> str | None:
        """Return the URL of that proxy, which may hold a password, for a foreign library."""
        if self.to(origin) is None or self.https_proxy is None:
            return None
        return self.https_proxy if "://" in self.https_proxy else f"http://{self.https_proxy}"


DIRECT: Final = ProxySettings()
"""No proxy."""


def proxy_for(origin: Origin, https_proxy: str | None, no_proxy: str) -> Proxy | None:
    """Return the proxy to use for `origin`; None for a direct connection.

    A proxy is used for https only, and never for loopback, which would be the proxy's machine.
    `no_proxy` is a list, separated by commas or spaces, of names (each includes its subdomains; a
    leading `.` or `*.` changes nothing), addresses and networks, each with a port if only that port
    is meant; `*` matches everything. Raises `RequestError`.
    """
    if not https_proxy or origin.scheme != "https" or _is_loopback(origin.host):
        return None
    if any(_means(entry.lower(), origin) for entry in no_proxy.replace(",", " ").split()):
        return None
    return Proxy.parse(https_proxy)


async def ask_to_connect(
    proxy: Proxy,
    origin: Origin,
    write: Callable[[bytes], object],
    read: Callable[[], Awaitable[bytes]],
) -> None:
    """Send CONNECT and wait for the answer; afterwards the connection leads to `origin`.

    `read` returns the next bytes, and raises `TransportError` when the connection ends. Raises
    `TransportError` if the proxy refuses, `RemoteProtocolError` if the peer is no HTTP proxy. The
    caller limits the time.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    import h11  # few machines reach the internet by a proxy

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
    headers = [("Host", target)]
    if proxy.credentials is not None:
        headers.append(("Proxy-Authorization", proxy.credentials))
    request = h11.Request(method="CONNECT", target=target, headers=headers)
    write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    status, said = await _read_status(proxy, connection, read)
    if status == _WANTS_CREDENTIALS:
        raise TransportError(_wants_credentials(proxy))
    if not 200 <= status < 300:
        raise TransportError(
            f"the proxy {proxy} refuses a connection to {target}: {_shown(said)};"
            f" ask who runs it to allow that, or put {origin.host} into NO_PROXY"
        )
    rest, _ = connection.trailing_data
    if rest:  # in TLS the client speaks first, so only the proxy can have sent this
        raise _no_proxy(proxy, rest)


async def _read_status(
    proxy: Proxy, connection: h11.Connection, read: Callable[[], Awaitable[bytes]]
) -> tuple[int, bytes]:
    """Return the status of the final answer, as a number and as the proxy wrote it.

    Informational answers (1xx) before it are skipped. `MAX_ANSWER_BYTES` bounds all together.
    """
    import h11

    received = b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return _refusal_in(proxy, received)
        match event:
            case h11.Response():
                return event.status_code, b"%d %b" % (event.status_code, event.reason)
            case h11.InformationalResponse():
                continue
            case h11.NEED_DATA:
                pass
            case _:
                raise _no_proxy(proxy, received)
        try:
            data = await read()
        except TransportError as error:
            after = f" after {_shown(received)}" if received else " without an answer"
            raise TransportError(f"the proxy {proxy} closed the connection{after}") from error
        received += data
        if not b"HTTP/1.".startswith(received[:7]) or len(received) > MAX_ANSWER_BYTES:
            raise _no_proxy(proxy, received)
        connection.receive_data(data)


def _refusal_in(proxy: Proxy, received: bytes) -> tuple[int, bytes]:
    """Return the status of an answer that is malformed, if it is a refusal all the same."""
    found = _REFUSED.match(received)
    if found is None:
        raise _no_proxy(proxy, received)
    return int(found["status"]), found["said"]


def _wants_credentials(proxy: Proxy) -> str:
    if proxy.credentials is not None:
        return f"the proxy {proxy} does not accept the user name and password of HTTPS_PROXY"
    return (
        f"the proxy {proxy} asks for a user name and a password:"
        f" put them into HTTPS_PROXY=http://USER:PASSWORD@{proxy}"
    )


def _no_proxy(proxy: Proxy, said: bytes) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"{proxy}, which HTTPS_PROXY names, is no HTTP proxy: it answered {_shown(said)}"
    )


def _shown(said: bytes) -> str:
    """Return the first line of received bytes, shortened and escaped for a log."""
    return repr(said.split(b"\n", 1)[0].rstrip(b"\r").decode("latin-1")[:_SHOWN_CHARS])


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _means(entry: str, origin: Origin) -> bool:
    """Return whether an entry of `NO_PROXY` matches `origin`."""
    if entry == "*":
        return True
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (name.count(":") == 0 or name.endswith("]")):
        if int(port) != origin.port:
            return False
        entry = name
    entry, host = entry.strip("[]"), origin.host.removesuffix(".")
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.removeprefix("*").lstrip(".").removesuffix(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
