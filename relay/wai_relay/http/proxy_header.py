"""Read a PROXY protocol header (versions 1 and 2), with which a proxy begins a connection.

The proxy says whose bytes follow. It is read from trusted proxies only; see `trusted_proxies`.
Sans-I/O: the reader is given bytes, and says how many more it may be given, so that no byte behind
the header is taken from the socket. The format is that of haproxy's `proxy-protocol.txt`.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from wai_protocol.errors import RemoteProtocolError

from .trusted_proxies import address_of

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
TEXT: Final = b"PROXY "
MAX_TEXT_BYTES: Final = 107
"""Of a header of version 1, with CRLF: the longest that the specification allows."""
MAX_REST_BYTES: Final = 4096
"""Of a header of version 2 after its first 16 bytes: addresses, and what proxies say of TLS."""

_FIXED_BYTES: Final = 16
_LOCAL: Final = 0x20
_PROXIED: Final = 0x21
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_ADDRESS_BYTES: Final = {_TCP4: 12, _TCP6: 36}


class ProxyHeaderReader:
    """Reads the header of one connection.

    `data`: what was received. Once `over`, either `present` is False and `data` are the peer's own
    bytes, or `address` is the caller's, None if the header names none (the proxy's own connections,
    such as health checks).
    """

    __slots__ = ("address", "data", "over", "present")

    def __init__(self) -> None:
        self.data = b""
        self.over = False
        self.present = False
        self.address: str | None = None

    @property
    def wanted(self) -> int:
        """How many bytes may be given at most; 0 once it is over."""
        if self.over:
            return 0
        if not self.present:
            expected = TEXT if self.data[:1] == TEXT[:1] else SIGNATURE
            return len(expected) - len(self.data) if self.data else 1
        if self.data.startswith(TEXT):
            return 1  # where the line ends is not known before
        return self._length - len(self.data)

    @property
    def _length(self) -> int:
        if len(self.data) < _FIXED_BYTES:
            return _FIXED_BYTES
        return _FIXED_BYTES + int.from_bytes(self.data[14:16], "big")

    def receive(self, data: bytes) -> None:
        """Take bytes, `wanted` at most. Raises `RemoteProtocolError` for an invalid header."""
        self.data += data
        if not self.present:
            if not (TEXT.startswith(self.data) or SIGNATURE.startswith(self.data)):
                self.over = True
                return
            self.present = self.data in (TEXT, SIGNATURE)
        elif self.data.startswith(TEXT):
            if self.data.endswith(b"\r\n"):
                self.address, self.over = _read_text(self.data[:-2]), True
            elif len(self.data) >= MAX_TEXT_BYTES:
                raise RemoteProtocolError("a PROXY header of version 1 does not end")
        elif len(self.data) >= _FIXED_BYTES:
            if self._length > _FIXED_BYTES + MAX_REST_BYTES:
                raise RemoteProtocolError("a PROXY header of version 2 is too long")
            if len(self.data) == self._length:
                self.address, self.over = _read_binary(self.data), True


def _read_text(line: bytes) -> str | None:
    """Return the source address in a header of version 1."""
    words = line.decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":
        return None
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise RemoteProtocolError("a PROXY header of version 1 names no TCP addresses")
    version = 4 if words[1] == "TCP4" else 6
    for address, port in ((words[2], words[4]), (words[3], words[5])):
        try:
            if ipaddress.ip_address(address).version != version:
                raise RemoteProtocolError("a PROXY header has an address of another family")
        except ValueError as error:
            raise RemoteProtocolError("a PROXY header has an address that is none") from error
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
            raise RemoteProtocolError("a PROXY header has a port that is none")
    return address_of(words[2])


def _read_binary(data: bytes) -> str | None:
    """Return the source address in a header of version 2."""
    command, family, rest = data[12], data[13], data[_FIXED_BYTES:]
    if command == _LOCAL:
        return None
    if command != _PROXIED:
        raise RemoteProtocolError("a PROXY header has an unknown version or command")
    size = _ADDRESS_BYTES.get(family)
    if size is None:  # unspecified, a unix socket, UDP: allowed, and no address for us
        return None
    if len(rest) < size:
        raise RemoteProtocolError("a PROXY header is shorter than its addresses")
    packed = rest[:4] if family == _TCP4 else rest[:16]
    return address_of(str(ipaddress.ip_address(packed)))
