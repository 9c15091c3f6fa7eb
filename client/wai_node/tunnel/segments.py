"""How large the tunnel's TCP segments may be, so that they pass wherever a packet can pass.

Some ways (PPPoE, VPNs, phones as modems) carry smaller packets than our interface, and some of
those drop the larger ones without a word (a path MTU black hole): small frames pass, and the first
large one never does. What a socket announces before it connects bounds both directions, so the node
alone decides. A pure state machine, told the time.
"""

from __future__ import annotations

from typing import Final

USUAL_BYTES: Final = 1220
"""Packets of 1,280 bytes with IPv6 and of 1,260 with IPv4: IPv6 demands that every way carries
these (RFC 8200 section 5), and QUIC begins no larger (RFC 9000 section 14). Against 1,460 it costs
1 % of an Ethernet's bandwidth (1,208 bytes of payload in 1,298 on the wire, or 1,448 in 1,538), and
0.08 s of CPU for a GiB."""

SMALLEST_BYTES: Final = 536
"""Packets of 576 bytes with IPv4: what every host takes (RFC 1122 section 3.3.3)."""

HEADERS_BYTES: Final = 60
"""Of IPv6 and TCP, to which those bytes are added in a packet; of IPv4 20 less."""

STALLS: Final = 3
"""So many connections in a row that stood and brought no answer: 17 s with the patience of
`backoff`. Before that it may be a network that was lost just then, or a relay that stood still."""

SMALL_FOR_S: Final = 3600.0
"""After this the usual size is tried again: the smaller one costs 9 % of the bandwidth."""


class Segments:
    """The size for the next connection."""

    def __init__(self) -> None:
        self._stalls = 0
        self._small_since: float | None = None

    def limit_bytes(self, now: float) -> int:
        """The maximum segment size (MSS) to announce."""
        if self._small_since is not None and now - self._small_since >= SMALL_FOR_S:
            self.begin_anew()
        return USUAL_BYTES if self._small_since is None else SMALLEST_BYTES

    def stalled(self, now: float) -> bool:
        """A connection stood, but no answer came. True: that is why segments are smaller now."""
        self._stalls += 1
        if self._stalls < STALLS or self._small_since is not None:
            return False
        self._small_since = now
        return True

    def found_too_large(self, now: float) -> None:
        """A connection was seen to lose its large segments."""
        self._small_since = now

    def answered(self) -> None:
        """A handshake succeeded."""
        self._stalls = 0

    def begin_anew(self) -> None:
        """The network has changed."""
        self._stalls = 0
        self._small_since = None
