"""Answer plain HTTP on a port that speaks TLS: each request gets 400, which says what to use."""

from __future__ import annotations

from wai_protocol.errors import RequestError

from .edge import TunnelFactory
from .h1 import H1Connection
from .heads import Head


class MisdirectedConnection(H1Connection):
    """An HTTP/1.1 connection whose requests are refused and reach no handler."""

    __slots__ = ()

    def begin(self, head: Head) -> None:
        """Refuse the request, and close."""
        where = f"https://{head.authority}" if head.authority else "https://"
        self.refuse(RequestError(f"this port speaks TLS only: use {where} instead of http://"))

    def hand_over(self, tunnel_factory: TunnelFactory, head: Head, rest: bytes) -> None:
        """Refuse a node too: what it sends would not be encrypted."""
        self.begin(head)
