"""Find a caller's address behind proxies that the operator trusts.

A trusted proxy says for whom it asks: in `X-Forwarded-For`, in `Forwarded` (RFC 7239), or at the
start of a connection by the PROXY protocol (`proxy_header`). Nobody else is believed. Each proxy
appends the address that it saw, so the list is read from its right end: the first address there
that is not a trusted proxy's is the caller's. What stands before it was sent by the caller, who can
write anything. Where no address can be read, the proxy's own counts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from wai_protocol.errors import RequestError
from wai_protocol.surface import Headers

Header: TypeAlias = Literal["either", "x-forwarded-for", "forwarded"]
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_TRUSTED: Final = 1000
"""Networks in the configuration: a content delivery network publishes some 20."""
MAX_HOPS: Final = 32
"""Addresses that are read. Nobody has so many proxies one after the other."""
REMEMBERED: Final = 4096
"""Addresses for which it is remembered whether they are trusted: parsing one takes 3 µs."""

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - a token of HTTP's grammar
_VALUE: Final = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'
_PAIR: Final = re.compile(rf"[ \t]*({_TOKEN})=({_VALUE})[ \t]*")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The proxies in front of the relay (`[proxy]`). Raises `RequestError` for other texts."""

    trusted: tuple[str, ...] = ()
    """Addresses and networks, such as `127.0.0.1` and `10.0.0.0/8`, whose word for a caller's
    address is taken."""
    header: Header = "either"
    """The field that the proxies set; with "either" the one that is there."""

    def __post_init__(self) -> None:
        if len(self.trusted) > MAX_TRUSTED:
            raise RequestError(f"proxy.trusted has up to {MAX_TRUSTED} addresses and networks")
        for entry in self.trusted:
            _network(entry)


def _network(entry: str) -> Network:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise RequestError(
            f"proxy.trusted: {entry[:100]!r} is no address and no network, such as 127.0.0.1 or"
            " 10.0.0.0/8"
        ) from None


class TrustedProxies:
    """Which peers are trusted proxies, and for whom they ask."""

    def __init__(self, trusted: Iterable[str] = (), header: Header = "either") -> None:
        self._networks = [_network(entry) for entry in trusted]
        self._read = {
            name: split
            for name, split in _READERS.items()
            if header in ("either", name.decode("ascii"))
        }
        self._is_listed = lru_cache(REMEMBERED)(self._find)

    def trusts(self, peer: str) -> bool:
        """Return whether `peer`, an address as text, is a trusted proxy's."""
        return bool(self._networks) and self._is_listed(peer)

    def _find(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def caller(self, peer: str, headers: Headers) -> str:
        """Return the address of the caller whose request with `headers` came from `peer`.

        If both fields are read and there, they must name the same caller: a proxy that sets one of
        them may pass on the other as its caller sent it.
        """
        if not self.trusts(peer):
            return peer
        found: set[str | None] = set()
        for name, split in self._read.items():
            values = [value.decode("latin-1") for field, value in headers if field == name]
            if values:
                found.add(_rightmost(split(",".join(values)), self.trusts))
        return (found.pop() if len(found) == 1 else None) or peer


def address_of(text: str) -> str | None:
    """Return the IP address in `text`, which may have a port, in its usual form; else None."""
    host, colon, port = text.rpartition(":")
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port.removeprefix(":"))):
            return None
        if ":" not in host:
            return None
    elif not colon or ":" in host:
        host = text
    elif not _is_port(port):
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def _rightmost(hops: list[str], trusts: Callable[[str], bool]) -> str | None:
    """Return the last of `hops` that is not trusted; the first if all are; None if unreadable."""
    address: str | None = None
    for hop in reversed(hops[-MAX_HOPS:]):
        address = address_of(hop)
        if address is None or not trusts(address):
            break
    return address


def _listed(value: str) -> list[str]:
    """Split the value of `X-Forwarded-For`."""
    return [hop.strip() for hop in value.split(",")]


def _forwarded(value: str) -> list[str]:
    """Return `for` of each element of `Forwarded`; "" where it has none, or can't be read."""
    hops, position = [], 0
    while True:
        hop = ""
        while True:
            pair = _PAIR.match(value, position)
            if pair is None:
                return [""]
            position = pair.end()
            if pair[1].lower() == "for":
                if hop:
                    return [""]
                hop = _unquoted(pair[2])
            if value[position : position + 1] != ";":
                break
            position += 1
        hops.append(hop)
        if position == len(value):
            return hops
        if value[position] != ",":
            return [""]
        position += 1


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


_READERS: Final = {b"x-forwarded-for": _listed, b"forwarded": _forwarded}
