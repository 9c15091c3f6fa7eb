"""The address of an HTTP server: scheme, host and port, or a Unix socket; parsed from a URL."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import msgspec

from wai_protocol.errors import Fault, RequestError

_DEFAULT_PORTS = {"http": 80, "https": 443}
UNIX_PREFIX: Final = "unix:///"
MAX_SOCKET_PATH_BYTES: Final = 103
"""Length of `sun_path` on macOS; on Linux it is four bytes longer."""


class Origin(msgspec.Struct, frozen=True):
    """The address of one server.

    `host` is a name or an IP address (IPv6 without brackets). For the scheme "unix" it is the path
    of a socket, and `port` is 0.
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> tuple[Origin, str]:
        """Parse an http, https or `unix:///PATH` URL into an origin and a path.

        The path has no slash at its end; it is "" for a Unix socket. Raises `RequestError` with a
        sentence for the person who typed the URL.
        """
        if url.startswith(UNIX_PREFIX):
            return cls._at_socket(url), ""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise RequestError(f"{url!r} is not a URL: {error}", Fault.BAD_REQUEST) from error
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise RequestError(f"{url!r} is not a URL like http://127.0.0.1:8080")
        if parts.username is not None or parts.query or parts.fragment:
            raise RequestError(f"{url!r} may hold no user name, query or fragment")
        if not parts.hostname.isascii():
            raise RequestError(f"{url!r}: write the host in its ASCII (xn--) form")
        origin = cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme])
        return origin, parts.path.rstrip("/")

    @classmethod
    def _at_socket(cls, url: str) -> Origin:
        path = url.removeprefix("unix://")
        if "\0" in path or len(path.encode()) > MAX_SOCKET_PATH_BYTES:
            limit = MAX_SOCKET_PATH_BYTES
            raise RequestError(f"{url!r}: the path of a unix socket has at most {limit} bytes")
        return cls("unix", path, 0)

    @property
    def authority(self) -> str:
        """The value of the Host header: without the port if it is the scheme's default."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def place(self) -> str:
        """A short name of the server for people: `127.0.0.1:8080`, `unix:/run/a.sock`."""
        return f"unix:{self.host}" if self.scheme == "unix" else self.authority

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.host}"
        return f"{self.scheme}://{self.authority}"
