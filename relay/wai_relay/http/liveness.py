"""Set socket options by which the kernel detects a caller that has vanished.

A machine that sleeps or loses its network sends no FIN, and its request would keep a slot at the
node. Keepalive probes detect that while nothing is sent (the caller waits for a first token). The
user timeout (RFC 5482) bounds how long sent bytes may stay unacknowledged. On some systems the
options have other names or do not exist; those that exist are set.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

# A vanished caller may occupy a slot for at most 30 s. A caller that waits is sent a comment every
# 15 s, and sent bytes end the probing: so either the probes detect it before the next comment, or
# that comment stays unacknowledged for `GONE_S`. A hand-over in a mobile network takes a few
# seconds.
KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 3
KEEPALIVE_PROBES: Final = 3
GONE_S: Final = KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES

# On macOS the idle time is TCP_KEEPALIVE. The user timeout is TCP_RXT_CONNDROPTIME there, for which
# Python has no constant.
_IDLE: Final[int | None] = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_INTERVAL: Final[int | None] = getattr(socket, "TCP_KEEPINTVL", None)
_PROBES: Final[int | None] = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux, in ms
_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
# In Linux's struct tcp_info, eight bytes are followed by 32-bit numbers; the fifth is
# `tcpi_unacked`.
_UNACKED_AT: Final = 8 + 4 * 4
_INFO_BYTES: Final = _UNACKED_AT + 4


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


def has_closed_window(sock: Any) -> bool:
    """Return whether the peer has acknowledged all sent bytes of a connection that has more to
    send.

    Then the peer is alive, but its receive window is closed, because its application does not read.
    Returns False on systems that do not report it.
    """
    if _INFO is None or _USER_TIMEOUT is None:
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, _INFO, _INFO_BYTES)
    return len(info) >= _INFO_BYTES and struct.unpack_from("=I", info, _UNACKED_AT)[0] == 0
