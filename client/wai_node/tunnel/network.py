"""Detect that the machine slept or that its route to the relay changed, and call back.

An older connection is dead then, but this is noticed only when its keepalive runs out. Dialling
again at once is cheap, because the session resumes. A tunnel that waits for its next dial, or whose
dial gets no answer, should dial at once too.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

import msgspec

LOOK_EVERY_S: Final = 1.0
"""Two system calls a second, so that a laptop that wakes up reconnects within one."""

JUMP_S: Final = 3.0
"""If the clock advanced this much more than the loop slept, the machine slept or the process was
stopped: no scheduler of a busy box is that late. An unneeded redial costs one round trip."""


class JumpDetector:
    """Compares a clock that stops while the machine sleeps with one that does not."""

    def __init__(self, asleep_too_s: float) -> None:
        self._expected_s = asleep_too_s

    def observe(self, asleep_too_s: float, slept_for_s: float) -> bool:
        """Return whether the clock that runs during sleep advanced by more than we waited."""
        jumped = asleep_too_s - self._expected_s > slept_for_s + JUMP_S
        self._expected_s = asleep_too_s
        return jumped


def boot_time_s() -> float:
    """Return the seconds since boot, sleep included (Linux); on other systems the wall clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if clock is None else time.clock_gettime(clock)


def source_address(host: str, port: int) -> str | None:
    """Return the source address that this machine would use towards `host`; None without a route.

    Asks the kernel's routing table by connecting a UDP socket: no packet is sent. `host` is an
    address, not a name.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            address = probe.getsockname()[0]
    except OSError:
        return None
    return address if isinstance(address, str) else None


class NetworkRoute(msgspec.Struct, frozen=True):
    """A tunnel's route: the relay's `host` and `port`, and our address (None if not connected)."""

    ours: str | None
    relay: str
    port: int


ANY_ROUTE: Final = NetworkRoute(None, "192.0.2.1", 443)
"""Stands for the default route before the relay's address is known: an address of the range that
is reserved for documentation (RFC 5737). Nothing is ever sent there."""


class RouteWatch:
    """Compares our address towards a relay with the one that was seen before."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], str | None] = {}

    def observe(self, route: NetworkRoute, source: str | None) -> str | None:
        """Describe the change if `source`, our address towards the relay, is a new one.

        Returns None if nothing happened that makes a new dial worthwhile.
        """
        key = (route.relay, route.port)
        before = self._seen.get(key, source) if route.ours is None else route.ours
        self._seen[key] = source
        if source is None or source == before:
            return None
        if before is None:
            return f"the network is back, with the address {source}"
        return f"our address changed from {before} to {source}"

    def keep_only(self, routes: list[NetworkRoute]) -> None:
        """Forget all routes but these."""
        kept = {(route.relay, route.port) for route in routes}
        self._seen = {key: seen for key, seen in self._seen.items() if key in kept}


async def watch_network(
    on_moved: Callable[[str], None],
    routes: Callable[[], list[NetworkRoute]],
    *,
    every_s: float = LOOK_EVERY_S,
) -> None:
    """Call `on_moved` with a reason whenever all tunnels should dial again; never returns.

    `routes` returns the current route of each tunnel.
    """
    detector, watch = JumpDetector(boot_time_s()), RouteWatch()
    while True:
        await asyncio.sleep(every_s)
        jumped = detector.observe(boot_time_s(), every_s)
        looked_at = routes()
        changes = [watch.observe(r, source_address(r.relay, r.port)) for r in set(looked_at)]
        watch.keep_only(looked_at)
        if jumped:
            on_moved("the clock jumped")
        elif change := next((c for c in changes if c is not None), None):
            on_moved(change)
