"""Whether a tunnel's connection has met a path MTU black hole: only its small packets pass.

Told from what the kernel knows of the connection (TCP_INFO, Linux) and from the silence of the
session. `segments` keeps most ways from being one; this finds those that carry even less than they
must. Elsewhere than on Linux nothing is found.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

LOOK_EVERY_S: Final = 1.0
"""One system call per tunnel and second."""

REPEATED: Final = 4
"""Repetitions of one segment: at least 3 s have passed since it was sent first."""

HEARD_S: Final = 2.0
"""The peer spoke after that, so it is no network that was lost altogether."""

UNHEARD_S: Final = 3.0
"""So long after our PING a PONG is overdue."""

_FIELDS: Final = struct.Struct("8B13I")  # the first of `struct tcp_info`, linux/tcp.h
_RETRANSMITS, _UNACKED, _LAST_ACK_MS = 2, 12, 20


@dataclass(frozen=True, slots=True)
class PathState:
    """What the kernel says. `retransmits`: of the segment at the head of what we send.
    `unacknowledged`: segments under way. `ack_age_s`: since the peer's kernel answered last."""

    retransmits: int
    unacknowledged: int
    ack_age_s: float


def path_state(sock: socket.socket) -> PathState | None:
    """The state of a connected TCP socket; None where the system does not tell."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        fields = _FIELDS.unpack(sock.getsockopt(socket.IPPROTO_TCP, option, _FIELDS.size))
    except (OSError, struct.error):
        return None  # it is closed, or an older kernel tells less
    return PathState(fields[_RETRANSMITS], fields[_UNACKED], fields[_LAST_ACK_MS] / 1000)


def is_black_hole(path: PathState, silent_s: float, ping_s: float) -> bool:
    """Whether large segments seem to be lost on a connection whose small ones pass.

    `silent_s`: since the last byte came; `ping_s`: the silence after which we ask for one.
    """
    if path.retransmits >= REPEATED:
        return silent_s <= HEARD_S  # ours do not arrive, the peer's do
    # Or the peer's do not arrive, though its kernel acknowledges our PINGs.
    overdue = silent_s >= ping_s + UNHEARD_S
    return overdue and path.unacknowledged == 0 and path.ack_age_s <= ping_s + UNHEARD_S
