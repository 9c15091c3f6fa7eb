"""How the kernel finds out that a caller has vanished: sleep, a lost network, a phone out of range.

Nobody says so then: no FIN comes, and the slot at the node stays taken. Keepalive probes ask while
nothing is sent (a caller waits for a first token), and the user timeout (RFC 5482) bounds how long
sent bytes may stay without an acknowledgement. The options exist by other names, or not at all, on
some systems; what is there is set. No timer and no rule of the connection's is here.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

# 30 s is what a vanished caller may hold a slot for. A mobile network's hand-over takes a few
# seconds, and 15 s without an answer are four lost probes.
KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3
GONE_S: Final = KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_PROBES

# macOS calls the idle time TCP_KEEPALIVE, and its bound for sent bytes TCP_RXT_CONNDROPTIME, in
# seconds, for which Python has no name.
_IDLE: Final[int | None] = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_INTERVAL: Final[int | None] = getattr(socket, "TCP_KEEPINTVL", None)
_PROBES: Final[int | None] = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux, in ms
_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
# struct tcp_info of Linux: eight bytes of states, then 32-bit numbers; the fifth is `tcpi_unacked`.
_UNACKED_AT: Final = 8 + 4 * 4
_INFO_BYTES: Final = _UNACKED_AT + 4


def watch(sock: Any) -> None:
    """Have the kernel end the connection of `sock` `GONE_S` after its peer was last heard of."""
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
    set_unanswered_limit(sock, GONE_S)


def set_unanswered_limit(sock: Any, limit_s: float) -> None:
    """Bound how long sent bytes, or a shut window, may stay as they are."""
    if _USER_TIMEOUT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(limit_s * 1000))


def has_shut_its_window(sock: Any) -> bool:
    """Whether the peer of a connection with bytes to send has acknowledged all that was sent.

    Then it is alive and its application reads nothing: the kernel may send no more. False where
    the system does not tell.
    """
    if _INFO is None or _USER_TIMEOUT is None:
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, _INFO, _INFO_BYTES)
    return len(info) >= _INFO_BYTES and struct.unpack_from("=I", info, _UNACKED_AT)[0] == 0
