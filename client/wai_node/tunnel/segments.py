"""Choose the maximum segment size (MSS) of the tunnel's TCP connections.

Some paths (PPPoE, VPNs, phones as modems) carry smaller packets than our interface, and some of
those drop larger packets silently (a path MTU black hole): small frames arrive, and large ones
never do. The MSS that a socket announces before it connects limits both directions, so the node
alone decides. A pure state machine; time is an argument.
"""

from __future__ import annotations

from typing import Final

USUAL_BYTES: Final = 1220
"""Gives packets of 1,280 bytes with IPv6 and of 1,260 with IPv4. IPv6 requires every path to carry
these (RFC 8200 section 5), and QUIC relies on no more (RFC 9000 section 14). Compared with 1,460
bytes it costs 1 % of an Ethernet's bandwidth (1,208 bytes of payload in 1,298 on the wire, instead
of 1,448 in 1,538), and 0.08 s of CPU for a GiB."""

SMALLEST_BYTES: Final = 536
"""Gives packets of 576 bytes with IPv4, which every host accepts (RFC 1122 section 3.3.3)."""

HEADERS_BYTES: Final = 60
"""The headers of IPv6 and TCP in a packet, beside the segment; with IPv4 20 bytes less."""

STALLS: Final = 3
"""Consecutive connections without an answer before segments are made smaller: 17 s with the limits
of `backoff`. Fewer may be due to a network that failed just then, or a relay that was busy."""

SMALL_FOR_S: Final = 3600.0
"""After this the usual size is tried again; the smaller one costs 9 % of the bandwidth."""


class Segments:
    """Chooses the segment size of the next connection."""

    def __init__(self) -> None:
        self._stalls = 0
        self._small_since: float | None = None

    def limit_bytes(self, now: float) -> int:
        """Return the maximum segment size to announce."""
        if self._small_since is not None and now - self._small_since >= SMALL_FOR_S:
            self.begin_anew()
        return USUAL_BYTES if self._small_since is None else SMALLEST_BYTES

    def stalled(self, now: float) -> bool:
        """Note that TCP connected and no answer came; return whether segments are now smaller."""
        self._stalls += 1
        if self._stalls < STALLS or self._small_since is not None:
            return False
        self._small_since = now
        return True

    def found_too_large(self, now: float) -> None:
        """Note that a connection loses its large segments."""
        self._small_since = now

    def answered(self) -> None:
        """Note that a handshake succeeded."""
        self._stalls = 0

    def begin_anew(self) -> None:
        """Start over: the network has changed."""
        self._stalls = 0
        self._small_since = None
