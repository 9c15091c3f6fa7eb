"""Which users' processes listen at a port of loopback, as Linux tells everybody.

By a question to the kernel where that can be asked (`socket_diag`), else by its tables in /proc.
"""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path
from typing import Final

from .socket_diag import listeners, server_end

_TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_LISTEN: Final = "0A"  # TCP_LISTEN in <net/tcp_states.h>, as the tables write it
_LOCAL_FIELD, _REMOTE_FIELD, _STATE_FIELD = 1, 2, 3
_UID_FIELD, _INODE_FIELD = 7, 9
_ANY_OR_LOOPBACK: Final = frozenset(
    {"127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"}  # noqa: S104
)
"""The addresses of listeners that a connection to 127.0.0.1 may reach."""


def listening_uids(port: int, peer: int | None = None) -> frozenset[int] | None:
    """The users whose sockets a connection to 127.0.0.1:`port` may reach; empty where the kernel
    knows of none, None where this system does not tell.

    `peer` is our own port of a connection that stands: whoever has accepted it counts too, since
    it may have closed its listener meanwhile.
    """
    if sys.platform == "linux":
        try:
            return _asked(port, peer)
        except OSError:
            pass  # a sandbox without AF_NETLINK, a kernel without tcp_diag: the table says the same
    return _read(port, peer)


def _asked(port: int, peer: int | None) -> frozenset[int]:
    ends = [end for end in listeners(port) if end.address in _ANY_OR_LOOPBACK]
    ours = None if peer is None else server_end(port, peer)
    if ours is not None and (ours.listens or ours.inode):
        ends.append(ours)
    return frozenset(end.uid for end in ends)


def _read(port: int, peer: int | None) -> frozenset[int] | None:
    found: set[int] = set()
    read = False
    for table in _TABLES:
        try:
            text = table.read_text()
        except OSError:
            continue  # no IPv6, or another system
        read = True
        found |= uids_in(text, port, peer)
    return frozenset(found) if read else None


def uids_in(table: str, port: int, peer: int | None = None) -> set[int]:
    """The same, in the text of /proc/net/tcp or tcp6."""
    ending = f":{port:04X}"
    from_us = None if peer is None else f":{peer:04X}"
    found = set()
    for line in table.splitlines()[1:]:
        if ending not in line:
            continue  # thousands of other connections, on a busy machine
        fields = line.split(maxsplit=_INODE_FIELD + 1)
        if len(fields) <= _INODE_FIELD or not fields[_LOCAL_FIELD].endswith(ending):
            continue
        if fields[_STATE_FIELD] == _LISTEN:
            theirs = True
        else:  # a connection that nobody has accepted yet has no inode
            ours = from_us is not None and fields[_REMOTE_FIELD].endswith(from_us)
            theirs = ours and fields[_INODE_FIELD] != "0"
        if theirs and _address(fields[_LOCAL_FIELD]) in _ANY_OR_LOOPBACK:
            found.add(int(fields[_UID_FIELD]))
    return found


def _address(field: str) -> str:
    """`0100007F:1F90` as an address: words of four bytes in this machine's order."""
    digits = field.partition(":")[0]
    words = [int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
