"""A path for IP packets between a test and a namespace, which silently drops some of them.

Two TUN devices, one at each end, and a thread between them that forwards every packet, except those
that are larger than the path allows, without an ICMP message (a path MTU black hole). Both
devices have the usual MTU, so that neither end knows the limit. Needs what `network_namespace`
needs, and `/dev/net/tun`.
"""

from __future__ import annotations

import fcntl
import os
import random
import selectors
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from .network_namespace import Namespace, ip

NARROW: Final = "198.18.9.1"
"""The address of the test at the other end of the path."""

_INSIDE: Final = "198.18.9.2"
_TUN: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_LONGEST_PACKET: Final = 65_535


class NarrowPath:
    """A running path. `widest_bytes` and `lost_share` may be changed at any time."""

    def __init__(self, outer: int, inner: int, widest_bytes: int) -> None:
        self.widest_bytes = widest_bytes
        self.lost_share = 0.0
        self.dropped = 0
        self._ends = {outer: inner, inner: outer}
        self._random = random.Random(1)
        self._wake, self._stop = os.pipe()

    def carry(self) -> None:
        """Carry packets until `close`."""
        with selectors.DefaultSelector() as selector:
            for end in (*self._ends, self._wake):
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == self._wake:
                        return
                    self._carry_one(key.fd)

    def _carry_one(self, end: int) -> None:
        packet = os.read(end, _LONGEST_PACKET)
        if len(packet) > self.widest_bytes or self._random.random() < self.lost_share:
            self.dropped += 1
            return
        os.write(self._ends[end], packet)

    def stop(self) -> None:
        """End `carry`."""
        os.write(self._stop, b"x")

    def close(self) -> None:
        """Free what it has, after `carry` has ended; the devices go with it."""
        for descriptor in (*self._ends, self._wake, self._stop):
            os.close(descriptor)


@contextmanager
def narrow_path(namespace: Namespace, widest_bytes: int) -> Iterator[NarrowPath]:
    """A way from `namespace` to `NARROW` that carries packets of up to `widest_bytes`."""
    if not _TUN.exists():
        pytest.skip(f"there is no {_TUN}")
    tag = namespace.device[2:-1]
    with ExitStack() as ending:
        outer, inner = _tun(f"wt{tag}o"), _tun(f"wt{tag}i")
        way = NarrowPath(outer, inner, widest_bytes)
        ending.callback(way.close)
        ip("addr", "add", f"{NARROW}/24", "dev", f"wt{tag}o")
        ip("link", "set", f"wt{tag}o", "up")
        ip("link", "set", f"wt{tag}i", "netns", namespace.name)
        ip("-n", namespace.name, "addr", "add", f"{_INSIDE}/24", "dev", f"wt{tag}i")
        ip("-n", namespace.name, "link", "set", f"wt{tag}i", "up")
        thread = threading.Thread(target=way.carry)
        thread.start()
        ending.callback(thread.join)
        ending.callback(way.stop)
        yield way


def _tun(name: str) -> int:
    descriptor = os.open(_TUN, os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN_NO_PI))
    return descriptor
