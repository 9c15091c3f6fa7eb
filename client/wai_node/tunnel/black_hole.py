"""Detect a path MTU black hole: a network path that silently drops a connection's large packets.

The evidence is the kernel's state of the connection (TCP_INFO, Linux only) and how long nothing was
received. The segment size that `segments` announces avoids most black holes; this module finds the
paths that drop even smaller packets. On other systems than Linux nothing is detected.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

import msgspec

LOOK_EVERY_S: Final = 1.0
"""One system call per tunnel and second."""

REPEATED: Final = 4
"""Retransmissions of one segment: at least 3 s have passed since it was sent first."""

HEARD_S: Final = 2.0
"""The peer was heard this recently, so the network has not failed altogether."""

UNANSWERED_S: Final = 3.0
"""A PONG that has not come so long after our PING is overdue."""

_FIELDS: Final = struct.Struct("8B13I")  # the first of `struct tcp_info`, linux/tcp.h
_RETRANSMITS, _UNACKED, _LAST_ACK_MS = 2, 12, 20


class PathState(msgspec.Struct, frozen=True):
    """The kernel's state of a TCP connection.

    `retransmits` counts those of the oldest unacknowledged segment; `unacknowledged` counts
    segments; `ack_age_s` is the time since the peer's kernel last acknowledged anything.
    """

    retransmits: int
    unacknowledged: int
    ack_age_s: float


def path_state(sock: socket.socket) -> PathState | None:
    """Return the state of a connected TCP socket; None if the system does not provide it."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        fields = _FIELDS.unpack(sock.getsockopt(socket.IPPROTO_TCP, option, _FIELDS.size))
    except (OSError, struct.error):
        return None  # it is closed, or an older kernel tells less
    return PathState(fields[_RETRANSMITS], fields[_UNACKED], fields[_LAST_ACK_MS] / 1000)


def is_black_hole(path: PathState, silent_s: float, unanswered_s: float | None) -> bool:
    """Return whether the path seems to drop large segments and to pass small ones.

    `silent_s`: seconds since the last byte was received. `unanswered_s`: seconds since we sent the
    PING that nothing has followed; None if there is none.
    """
    if path.retransmits >= REPEATED:
        return silent_s <= HEARD_S  # our segments do not arrive, the peer's do
    # Or the peer's segments do not arrive, though its kernel has acknowledged our PING.
    if unanswered_s is None or unanswered_s < UNANSWERED_S:
        return False
    return path.unacknowledged == 0 and path.ack_age_s <= unanswered_s
