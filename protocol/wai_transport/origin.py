"""Where an HTTP server is: scheme, host and port, read from a URL that a person typed."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from wai_protocol.errors import Fault, RequestError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """One server. `host` is a name or an address, IPv6 without brackets."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> tuple[Origin, str]:
        """The origin of an http or https `url`, and its path without a closing slash.

        Raises `RequestError` with a sentence for whoever typed it.
        """
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

    @property
    def authority(self) -> str:
        """What goes into Host: without the port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"
