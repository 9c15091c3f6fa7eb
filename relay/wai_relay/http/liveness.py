"""Set socket options by which the kernel detects a caller that has vanished.

A machine that sleeps or loses its network sends no FIN, and its request would keep a slot at the
node. Keepalive probes detect that while nothing is sent (the caller waits for a first token). The
user timeout (RFC 5482) bounds how long sent bytes may stay unacknowledged. A caller that closed its
window before it vanished is detected by `PeerState`. On some systems the options have other names
or do not exist; those that exist are set.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

import msgspec

# A vanished caller may occupy a slot for at most 30 s. A caller that waits is sent a comment every
# 15 s, and sent bytes end the probing: so either the probes detect it before the next comment, or
# that comment stays unacknowledged for `GONE_S`. A hand-over in a mobile network takes a few
# seconds.
KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 3
KEEPALIVE_PROBES: Final = 3
GONE_S: Final = KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES

# A caller that does not read closes its window, and the kernel sends no keepalive probes then, but
# probes of the window. Three of them may get lost before the caller is taken for vanished.
PROBE_S: Final = 7.0
UNANSWERED_PROBES: Final = 3
UNANSWERED_S: Final = PROBE_S * UNANSWERED_PROBES + 1.0
ALIVE_CHECK_S: Final = 2.0
"""Interval of the checks whether a caller that accepts no byte is alive."""

WATCH_S: Final = 5.0
"""The same while the kernel still has room for a slow answer: its window may be closed already. In
less than `GONE_S` twice, so that a caller that pauses is not taken for one that has vanished."""

# On macOS the idle time is TCP_KEEPALIVE. The user timeout is TCP_RXT_CONNDROPTIME there, for which
# Python has no constant.
_IDLE: Final[int | None] = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_INTERVAL: Final[int | None] = getattr(socket, "TCP_KEEPINTVL", None)
_PROBES: Final[int | None] = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux, in ms
_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
# Linux's struct tcp_info begins with eight bytes, of which the fourth is `tcpi_probes`. Numbers of
# 32 bits follow: `tcpi_unacked` is the fifth, `tcpi_last_data_sent` the tenth, and
# `tcpi_last_ack_recv` the thirteenth. Both times are in ms. `tcpi_notsent_bytes` is at byte 144.
_INFO_LAYOUT: Final = struct.Struct("=3xB4x 16xI 16xI 8xI 84xI")


class PeerState(msgspec.Struct, frozen=True):
    """What the kernel knows of a peer.

    `unsent`: bytes that the kernel has, and has not sent. `unacked`: sent segments that wait for
    their acknowledgement. `probes`: probes of a closed
    window that were not answered. The times are since the last data was sent, and since anything
    was acknowledged.
    """

    unsent: int
    unacked: int
    probes: int
    last_data_s: float
    last_ack_s: float

    @property
    def has_closed_window(self) -> bool:
        """Whether bytes wait although all sent ones are acknowledged: the peer does not read."""
        return bool(self.unsent) and not self.unacked

    @property
    def has_vanished(self) -> bool:
        """Whether probes of its closed window remained unanswered for long enough."""
        return (
            self.has_closed_window
            and self.probes >= UNANSWERED_PROBES
            and self.last_ack_s >= UNANSWERED_S
        )

    @property
    def user_timeout_s(self) -> float:
        """The user timeout that makes the kernel probe the closed window every `PROBE_S`.

        Otherwise each probe comes twice as late as the one before, up to 120 s. But the kernel
        probes when the user timeout ends, counted from the first probe, and ends the connection
        only if it is not longer by then. So it must be set again every `ALIVE_CHECK_S`.
        """
        return max(float(GONE_S), self.last_data_s + PROBE_S)


def watch(sock: Any) -> None:
    """Make the kernel end the connection when its peer has not answered for `GONE_S` seconds."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (_IDLE, KEEPALIVE_IDLE_S),
        (_INTERVAL, KEEPALIVE_INTERVAL_S),
        (_PROBES, KEEPALIVE_PROBES),
    ):
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    set_user_timeout(sock, GONE_S)


def set_user_timeout(sock: Any, limit_s: float) -> None:
    """Set how long sent bytes may stay unacknowledged, or the peer's window closed (RFC 5482)."""
    if _USER_TIMEOUT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(limit_s * 1000))


def peer_state(sock: Any) -> PeerState | None:
    """Return what the kernel knows of the peer; None on systems that do not report it."""
    if _INFO is None or _USER_TIMEOUT is None:
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, _INFO, _INFO_LAYOUT.size)
    if len(info) < _INFO_LAYOUT.size:
        return None
    probes, unacked, last_data_ms, last_ack_ms, unsent = _INFO_LAYOUT.unpack(info)
    return PeerState(unsent, unacked, probes, last_data_ms / 1000, last_ack_ms / 1000)
